"""What both sides had when they were equal last: the base of the merge, on disk.

The first line is a whole tree, each further one a change of it: a sync of ten files among ten thousand writes ten. A last
line that was not finished does not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midwatch.content.durable import replace_file
from midwatch.content.errors import ContentDamaged
from midwatch.content.sync.journal import delta_from_json, delta_to_json
from midwatch.content.tree import Delta, Entry, compact, tree_from_json, tree_to_json

_LEAST_BYTES = 1 << 20
"""Of changes, before the tree is written anew."""


class BaseFile:
    """`tree`, and `version`: which one that is at the proxy; empty where it is none of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.tree: Mapping[str, Entry] = {}
        self.version = ""
        self._whole = 0
        self._size = 0

    def load(self) -> None:
        """Raises OSError, and ContentDamaged for what is no base."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        try:
            first = json.loads(lines[0])
            tree, self.version = tree_from_json(first["tree"]), str(first["version"])
            self._whole = self._size = len(lines[0])
            for line in lines[1:]:
                if line.endswith(b"\n"):
                    tree = self._changed(tree, json.loads(line))
                    self._size += len(line)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ContentDamaged(
                f"{self._path} cannot be read",
                hint="remove it: then the folders are merged as if for the first time",
            ) from error
        self.tree = tree

    def _changed(self, tree: dict[str, Entry], data: Any) -> dict[str, Entry]:
        self.version = str(data["version"])
        return delta_from_json(data).apply(tree)

    def advance(self, delta: Delta, version: str) -> None:
        """From now on it is that. Raises OSError; then it is still what it was."""
        if not delta and version == self.version:
            return
        tree = delta.apply(self.tree)
        data = delta_to_json(delta) | {"version": version}
        line = compact(data) + b"\n"
        changes = self._size - self._whole + len(line)
        if not self._whole or changes > max(self._whole, _LEAST_BYTES):
            self._rewrite(tree, version)
        else:
            self._append(line)
        self.tree, self.version = tree, version

    def _append(self, line: bytes) -> None:
        with self._path.open("r+b") as file:
            # Whatever is behind the last whole line was never told to anybody.
            file.truncate(self._size)
            file.seek(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)

    def _rewrite(self, tree: Mapping[str, Entry], version: str) -> None:
        data = {"version": version, "tree": tree_to_json(tree)}
        line = compact(data) + b"\n"
        replace_file(self._path, line)
        self._whole = self._size = len(line)
