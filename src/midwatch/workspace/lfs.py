"""Git LFS pointers, computed here: the filter program of a hostile repository is never run."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SIGNATURE = b"version https://git-lfs.github.com/spec/v1\n"
_CHUNK = 1 << 20


def pointer_of(path: Path) -> bytes:
    """The pointer that stands for the file in a commit; a pointer stands for itself.

    The format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        first = file.read(1024)
        if first.startswith(_SIGNATURE):
            return first
        while first:
            digest.update(first)
            size += len(first)
            first = file.read(_CHUNK)
    return _SIGNATURE + f"oid sha256:{digest.hexdigest()}\nsize {size}\n".encode()
