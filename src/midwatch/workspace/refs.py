"""Refs: what a remote advertises, and what a git directory of ours holds."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.workspace.git import Command, Git
from midwatch.workspace.urls import Remote, is_ref_name

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


# ------------------------------------------------------------ gitdir
# Git directories made by plain file operations: no process, no template, no shared file.
#
# A clone that an agent works in gets copies. A hard link to a mirror's pack would let the agent
# write into the mirror through a sandbox that only allows the workspace; a borrowed object folder would
# break when the mirror is pruned. A copy within the kernel costs 13 ms for 50 MB, and nothing where
# the file system shares blocks.

_PACK_FILES = (".pack", ".idx", ".rev", ".promisor")
# (section, subsection, key, value)
Setting = tuple[str, str, str, str]


def make_git_dir(
    git_dir: Path, head: str, settings: Iterable[Setting], refs: Mapping[str, str]
) -> None:
    """An empty git directory: `head` is a full ref name or an object id."""
    for folder in ("objects/pack", "objects/info", "refs/heads", "refs/tags", "info"):
        (git_dir / folder).mkdir(parents=True)
    target = f"ref: {head}" if head.startswith("refs/") else head
    (git_dir / "HEAD").write_text(f"{target}\n", encoding="utf-8")
    (git_dir / "config").write_text(config_text(settings), encoding="utf-8")
    lines = [f"{oid} {name}\n" for name, oid in refs.items()]
    (git_dir / "packed-refs").write_text("".join(sorted(lines)), encoding="utf-8")


def base_settings(bare: bool, object_format: str, promisor: bool) -> list[Setting]:
    """What git needs to know of its own directory."""
    extended = promisor or object_format != "sha1"
    settings = [
        ("core", "", "repositoryformatversion", "1" if extended else "0"),
        ("core", "", "filemode", "true"),
        ("core", "", "bare", "true" if bare else "false"),
    ]
    if not bare:
        settings.append(("core", "", "logallrefupdates", "true"))
    if object_format != "sha1":
        settings.append(("extensions", "", "objectformat", object_format))
    if promisor:
        settings.append(("extensions", "", "partialclone", "origin"))
        settings.append(("remote", "origin", "promisor", "true"))
        settings.append(("remote", "origin", "partialclonefilter", "blob:none"))
    return settings


def config_text(settings: Iterable[Setting]) -> str:
    """A git config file. Every value is quoted, so none can begin a section of its own."""
    lines = []
    for section, subsection, key, value in settings:
        heading = f'{section} "{_escaped(subsection)}"' if subsection else section
        lines.append(f'[{heading}]\n\t{key} = "{_escaped(value)}"\n')
    return "".join(lines)


def _escaped(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError("a line break cannot be part of a git setting")
    return text.replace("\\", "\\\\").replace('"', '\\"')


def link_objects(source: Path, target: Path) -> None:
    """Give git directory `target` the objects of `source` by hard links (else copies).

    Only between folders that both are ours: git itself never changes a pack in place.
    """
    _transfer(source, target, _link_or_copy)


def copy_objects(source: Path, target: Path) -> None:
    """Give git directory `target` copies of the objects of `source`."""
    _transfer(source, target, copy_file)


def _transfer(source: Path, target: Path, put: Callable[[Path, Path], None]) -> None:
    for folder in ("pack", *_loose_folders(source / "objects")):
        made = target / "objects" / folder
        made.mkdir(exist_ok=True)
        for entry in list(os.scandir(source / "objects" / folder)):
            place = made / entry.name
            wanted = folder != "pack" or entry.name.endswith(_PACK_FILES)
            if wanted and entry.is_file(follow_symlinks=False) and not place.exists():
                put(Path(entry.path), place)
    shallow = source / "shallow"
    if shallow.exists():
        copy_file(shallow, target / "shallow")


def _loose_folders(objects: Path) -> list[str]:
    return [
        e.name for e in list(os.scandir(objects)) if len(e.name) == 2 and e.is_dir()
    ]


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy content within the kernel, sharing blocks where the file system can."""
    with source.open("rb") as read, target.open("xb") as written:
        size = os.fstat(read.fileno()).st_size
        try:
            _copy_range(read.fileno(), written.fileno(), size)
        except OSError:  # not between these file systems
            written.truncate(0)
            written.seek(0)
            read.seek(0)
            shutil.copyfileobj(read, written, 1 << 20)
        os.fchmod(written.fileno(), 0o444)


def _copy_range(source: int, target: int, size: int) -> None:
    done = 0
    while done < size:
        count = os.copy_file_range(source, target, size - done, done, done)
        if count == 0:
            raise OSError("the source became shorter")
        done += count
