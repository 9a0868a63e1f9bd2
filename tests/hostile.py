"""What another process of the same user can put where a file is expected."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

HOSTILE = {
    "pipe": "a named pipe",
    "device": "a symbolic link",
    "link": "a symbolic link",
    "dangling": "a symbolic link",
    "folder": "a folder",
    "socket": "a socket",
}
"""Kinds for `put`, and the words for them. Only root can make a device, so there is a link to one."""


def put(kind: str, path: Path) -> None:
    """Make something at the path that is not a regular file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        _socket(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link":
        target = path.with_name(f"{path.name}.target")
        target.touch()
        path.symlink_to(target)
    else:
        path.symlink_to(path.with_name("nothing"))


def _socket(path: Path) -> None:
    """Bind by a name within the folder: the path of a socket has 108 bytes at most."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def no_file(path: Path) -> None:
    """Remove whatever is at the path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
