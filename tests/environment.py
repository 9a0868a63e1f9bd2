"""One environment for every run of the tests, whatever the machine of a developer has.

What the caller set (proxies, a PostgreSQL, settings of git, of Claude Code or of a cluster, a
locale, an umask, ignored signals) does not reach the tests or the processes that they start.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

_KEPT = ("PATH", "PYTHONPATH", "CI")
_KEPT_PREFIXES = ("PYTEST_", "HYPOTHESIS_", "COVERAGE_")
_LONGEST_TMPDIR = 20
"""The path of a Unix socket has 108 characters at most, and pytest and a test add some 80."""
_INHERITED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def clean(environ: Mapping[str, str], home: Path, tmpdir: str) -> dict[str, str]:
    """Return the variables that the tests run with: some of `environ`, and fixed ones."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    return {
        "PATH": os.defpath,
        **kept,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": tmpdir,
        "TZ": "UTC",
        "GIT_CONFIG_NOSYSTEM": "1",
    }


def enter() -> Path:
    """Replace the environment of this process; return the home folder to remove at the end."""
    tmpdir = _tmpdir(os.environ.get("TMPDIR", ""))
    os.umask(0o022)
    for number in _INHERITED_SIGNALS:  # a shell's background job ignores SIGINT
        if signal.getsignal(number) is signal.SIG_IGN:
            default = number == signal.SIGINT
            signal.signal(
                number, signal.default_int_handler if default else signal.SIG_DFL
            )
    tempfile.tempdir = None
    home = Path(tempfile.mkdtemp(prefix="midwatch-home-", dir=tmpdir))
    variables = clean(os.environ, home, tmpdir)
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()
    return home


def leave(home: Path) -> None:
    """Remove what `enter` made."""
    shutil.rmtree(home, ignore_errors=True)


def _tmpdir(wanted: str) -> str:
    """Return `wanted` if it is short enough for sockets below it, or the system's folder."""
    for folder in (wanted, "/tmp", "/var/tmp"):
        if folder and len(folder) <= _LONGEST_TMPDIR and os.access(folder, os.W_OK):
            return folder
    raise RuntimeError("no writable temporary folder with a short path; set TMPDIR")
