"""`python -m bench [NAME …] [--quick] [--json]`: run all benchmarks, or those named, each in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ._machine import machine
from .report import as_json, table

FRAME = {"__main__", "report"}
_AT_ONCE = 4
"""Benchmarks that run at the same time with `--quick`."""
LIMIT = 3600.0
"""Seconds that one benchmark may take."""


def available() -> list[str]:
    """Return the modules of this folder that have a benchmark: `async def run() -> Sequence[Row]`."""
    folder = str(Path(__file__).parent)
    names = (module.name for module in pkgutil.iter_modules([folder]))
    return sorted(
        name for name in names if name not in FRAME and not name.startswith("_")
    )


def measure(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Run one benchmark. Return its name, date, seconds and rows; without rows, with `error`, if it crashed."""
    print(f"==> {name}\n", end="", file=sys.stderr, flush=True)
    date, began = datetime.now(UTC), time.monotonic()
    found: dict[str, Any] = {"name": name, "date": date.date().isoformat(), "rows": []}
    with tempfile.NamedTemporaryFile("r") as file:
        command = [sys.executable, "-m", "bench", name, "--rows", file.name]
        process = subprocess.Popen(command, env=environ, stdout=sys.stderr)
        try:
            code: int | str = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = f"the time limit of {LIMIT:g} s"
        finally:
            _end(process)
        if code:
            found["error"] = f"ended with {code}"
        else:
            found["rows"] = json.load(file)
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a benchmark that still runs: as Ctrl-C does, so that it ends its servers, and then for good."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> int:
    """Return 1 if a benchmark crashed; a missed target is no error."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(available()))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, few rounds, no verdict"
    )
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.names) - set(available()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    if options.rows:
        return _run(options.names[0], Path(options.rows))
    environ = os.environ | ({"BENCH_QUICK": "1"} if options.quick else {})
    names: Sequence[str] = options.names or available()
    if options.quick:  # what is not judged may share the processors
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            results = list(pool.map(lambda name: measure(name, environ), names))
    else:
        results = [measure(name, environ) for name in names]
    if options.json:
        found = {"machine": machine(), "benchmarks": results}
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        rows = [row for result in results for row in result["rows"]]
        table(rows, judge=not options.quick)
    crashed = [result for result in results if "error" in result]
    for result in crashed:
        print(f"{result['name']} {result['error']}", file=sys.stderr)
    return 1 if crashed else 0


def _run(name: str, file: Path) -> int:
    """Run one benchmark in this process and write its rows."""
    module = importlib.import_module(f"bench.{name}")
    rows = asyncio.run(module.run())
    file.write_text(json.dumps([as_json(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
