"""Refs: what a remote advertises, and what a git directory of ours holds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.workspace.git import Command, Git
from midwatch.workspace.names import is_ref_name
from midwatch.workspace.urls import Remote

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class Advertised:
    """What a remote says it has: its default branch, and object ids by full ref name."""

    default_branch: str | None
    refs: Mapping[str, str] = field(default_factory=dict)

    @property
    def object_format(self) -> str:
        return "sha256" if any(len(o) == 64 for o in self.refs.values()) else "sha1"


def is_oid(text: str) -> bool:
    return bool(_OID.fullmatch(text))


async def ask_remote(git: Git, remote: Remote, wanted: str | None) -> Advertised:
    """One round trip that tells whether the remote answers, and all its branches and tags."""
    command = Command(
        # HEAD alone would also match refs/remotes/*/HEAD there; those are left out below.
        ["ls-remote", "--symref", "--end-of-options", remote.transport_url],
        repository=remote.url,
        branch=wanted,
        remote=remote,
        timeout=git.limits.ask_seconds,
    )
    output = await git.retry(lambda: git.run(command))
    return parse_advertised(output.text)


def parse_advertised(text: str) -> Advertised:
    """The answer of `git ls-remote --symref`; what is no branch or tag is left out."""
    default, refs = None, {}
    for line in text.split("\n"):
        value, _, name = line.partition("\t")
        if name == "HEAD" and value.startswith("ref: refs/heads/"):
            default = value.removeprefix("ref: refs/heads/")
        elif is_oid(value) and _is_branch_or_tag(name):
            refs[name] = value
    if default is not None and not is_ref_name(default):
        default = None
    return Advertised(default, refs)


def read_refs(git_dir: Path) -> dict[str, str]:
    """Branches and tags of a git directory that is ours, by full name."""
    refs = {}
    for line in _lines(git_dir / "packed-refs"):
        oid, _, name = line.partition(" ")
        if is_oid(oid) and _is_branch_or_tag(name):
            refs[name] = oid
    for name, path in _loose(git_dir / "refs", "refs"):
        oid = path.read_text(encoding="utf-8", errors="replace").strip()
        if is_oid(oid) and _is_branch_or_tag(name):
            refs[name] = oid
    return refs


def _is_branch_or_tag(name: str) -> bool:
    kind, _, rest = name.removeprefix("refs/").partition("/")
    return kind in ("heads", "tags") and is_ref_name(rest)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []


def _loose(folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for entry in list(os.scandir(folder)):
        name = f"{prefix}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _loose(Path(entry.path), name)
        elif not entry.name.endswith(".lock"):
            yield name, Path(entry.path)
