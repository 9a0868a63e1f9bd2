"""`python -m bench [NAME …] [--json]`: run all benchmarks, or those named."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from .report import Row, show

FRAME = {"__main__", "report"}


def available() -> list[str]:
    """Return the modules of this folder that have a benchmark: `async def run() -> Sequence[Row]`."""
    folder = str(Path(__file__).parent)
    names = (module.name for module in pkgutil.iter_modules([folder]))
    return sorted(
        name for name in names if name not in FRAME and not name.startswith("_")
    )


async def measure(names: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for name in names:
        print(f"==> {name}", file=sys.stderr, flush=True)
        rows += await importlib.import_module(f"bench.{name}").run()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(available()))
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if unknown := set(options.names) - set(available()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    rows = asyncio.run(measure(options.names or available()))
    show(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
