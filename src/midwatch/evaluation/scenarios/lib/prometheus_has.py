"""End with status 0 if an expression has a result: `prometheus_has.py PORT EXPRESSION`."""

from __future__ import annotations

import json
import sys
from urllib.parse import quote
from urllib.request import urlopen


def main(port: str, expression: str) -> int:
    """Return the exit status."""
    url = f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}"
    with urlopen(url, timeout=5) as answer:
        return 0 if json.load(answer)["data"]["result"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
