"""Run the unit tests on every Python of this machine that Midwatch supports: `make test-pythons`.

Prints one line for each Python found, and what failed on it. Each has a virtual environment
of its own below `.venv/pythons`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)
_ABOUT = (
    "import json, os, sys; print(json.dumps([list(sys.version_info[:3]), "
    "sys.implementation.name, sys.version_info[3], os.path.realpath(sys._base_executable)]))"
)


@dataclass(frozen=True, order=True)
class Python:
    version: tuple[int, ...]
    program: str

    @property
    def name(self) -> str:
        return ".".join(map(str, self.version))


def folders() -> list[Path]:
    """The folders in which a Python may be: the PATH, the system's, pyenv's and uv's."""
    home = Path.home()
    found = [
        Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part
    ]
    found += [Path("/usr/bin"), Path("/usr/local/bin")]
    found += sorted(home.glob(".pyenv/versions/*/bin"))
    found += sorted(home.glob(".local/share/uv/python/*/bin"))
    # pyenv's shims are no Pythons: they start what is in its folder of versions.
    return [folder for folder in dict.fromkeys(found) if folder.name != "shims"]


def find() -> list[Python]:
    """Return each supported Python once, the oldest first; print a line for what is left out."""
    found: dict[str, Python] = {}
    for folder in folders():
        for minor in range(OLDEST[1], 100):
            program = folder / f"python3.{minor}"
            if not os.access(program, os.X_OK):
                continue
            probe = subprocess.run(
                [program, "-I", "-c", _ABOUT], capture_output=True, text=True
            )
            if probe.returncode:
                print(
                    f"{program}: left out, it does not run: {probe.stderr.strip()[-200:]}"
                )
                continue
            version, kind, level, real = json.loads(probe.stdout)
            if real in found:
                continue
            if kind != "cpython" or level != "final" or tuple(version[:2]) > NEWEST:
                print(f"{program}: left out, {kind} {version} {level} is not supported")
                continue
            found[real] = Python(tuple(version), real)
    return sorted(found.values())


def install(python: Python, uv: str) -> Path:
    """Return the virtual environment's program, with what the lock file has installed."""
    venv = ROOT / ".venv" / "pythons" / python.name
    program = venv / "bin" / "python"
    inputs = [
        (ROOT / name).read_bytes()
        for name in ("requirements-dev.lock", "pyproject.toml")
    ]
    digest = hashlib.sha256(b"\0".join([*inputs, python.program.encode()])).hexdigest()
    stamp = venv / "installed"
    if stamp.exists() and stamp.read_text() == digest:
        return program
    pip = [uv, "pip", "install", "--quiet", "--python", str(program)]
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", python.program, str(venv)],
        [*pip, "--require-hashes", "-r", "requirements-dev.lock"],
        [*pip, "--no-deps", "--no-build-isolation", "-e", "."],
    ):
        subprocess.run(command, cwd=ROOT, check=True)
    stamp.write_text(digest)
    return program


def passes(python: Python, uv: str, arguments: list[str]) -> bool:
    """Run the unit tests; print pytest's closing line, and all of its output if they fail."""
    try:
        program = install(python, uv)
    except subprocess.CalledProcessError as error:
        print(f"Python {python.name}: cannot be set up: {error}", flush=True)
        return False
    command = [
        program,
        "-m",
        "pytest",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        "tests/unit",
    ]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout)
    lines = done.stdout.strip().splitlines()
    print(f"Python {python.name}: {lines[-1] if lines else 'no output'}", flush=True)
    return done.returncode == 0


def main(uv: str, *arguments: str) -> int:
    pythons = find()
    if not pythons:
        print("no Python from 3.11 to 3.14 was found", file=sys.stderr)
        return 1
    failed = [one.name for one in pythons if not passes(one, uv, list(arguments))]
    if failed:
        print(f"the unit tests fail on Python {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
