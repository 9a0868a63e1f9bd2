"""Run the whole suite twice in a row beside four busy loops: `make test-busy`.

The loops end by themselves after two hours, when this process is gone, and when it is done.
"""

from __future__ import annotations

import subprocess
import sys

LOOPS = 4
LONGEST = 7200
"""Seconds after which a loop ends by itself."""
RUNS = 2
_LOOP = f"""
import os, time
caller, end = os.getppid(), time.monotonic() + {LONGEST}
while time.monotonic() < end and os.getppid() == caller:
    for _ in range(1_000_000):
        pass
"""


def main(*arguments: str) -> int:
    loops = [subprocess.Popen([sys.executable, "-c", _LOOP]) for _ in range(LOOPS)]
    try:
        for number in range(1, RUNS + 1):
            print(f"==> run {number} of {RUNS} beside {LOOPS} busy loops", flush=True)
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-n",
                "4",
                "--dist",
                "worksteal",
                *arguments,
            ]
            if code := subprocess.run(command).returncode:
                return code
            if any(loop.poll() is not None for loop in loops):
                print("a busy loop ended before the tests did", file=sys.stderr)
                return 1
        return 0
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
