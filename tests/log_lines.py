"""Lines of logs for tests: scanned, counted, and as containers write them."""

from __future__ import annotations

import json
from collections.abc import Callable

from midwatch.redaction import Redactor
from midwatch.subjects.logs.error_shapes import Shapes
from midwatch.subjects.logs.framing import Format
from midwatch.subjects.logs.scanner import Scanner

WRAPPERS: dict[Format, Callable[[str], str]] = {
    "plain": lambda line: f"{line}\n",
    "cri": lambda line: f"2026-05-03T12:00:00.1Z stderr F {line}\n",
    "docker": lambda line: json.dumps(
        {"log": f"{line}\n", "stream": "stderr", "time": "2026-05-03T12:00:00.1Z"},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    + "\n",
}


def shapes() -> Shapes:
    return Shapes(None, "", 50, Redactor().text, 1000.0)


def scanned(text: str, form: Format = "plain") -> Scanner:
    scanner = Scanner(shapes())
    scanner.feed(text.encode("utf-8", "replace"), "app.log", form)
    return scanner


def counts(scanner: Scanner) -> dict[str, int]:
    return {one.text: one.found for one in scanner.shapes if one.found}
