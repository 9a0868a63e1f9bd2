"""Refs of remotes and of trusted git directories, and how these are made.

Trusted git directories are made by plain file operations: no process, no template, no shared file. A clone
that an agent works in gets copies. With a hard link to a pack of a mirror the agent could write into the
mirror through a sandbox that allows only the workspace; with a borrowed object folder the clone would
break when the mirror is pruned. A copy within the kernel takes 13 ms for 50 MB, and nothing where the
file system shares blocks.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midwatch.workspace.git import Git, GitCommand
from midwatch.workspace.urls import Remote, is_ref_name

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class Advertised:
    """The default branch of a remote, and the object ids of its branches and tags by full ref name."""

    default_branch: str | None
    refs: Mapping[str, str] = field(default_factory=dict)

    @property
    def object_format(self) -> str:
        """sha1 or sha256."""
        return "sha256" if any(len(o) == 64 for o in self.refs.values()) else "sha1"


def is_oid(text: str) -> bool:
    """Return whether `text` is a full object id."""
    return bool(_OID.fullmatch(text))


async def ask_remote(git: Git, remote: Remote, wanted: str | None) -> Advertised:
    """Query a remote for its branches and tags.

    Args:
        git: Runs git.
        remote: The remote.
        wanted: The branch or tag that is wanted, for messages.

    Raises:
        GitMissing: There is no git program.
        RepositoryError: The remote does not answer, or refuses.
    """
    command = GitCommand(
        # A pattern HEAD would also match refs/remotes/*/HEAD, so all refs are listed.
        ["ls-remote", "--symref", "--end-of-options", remote.transport_url],
        repository=remote.url,
        branch=wanted,
        remote=remote,
        timeout=git.limits.ask_seconds,
    )
    output = await git.retry(lambda: git.run(command))
    return parse_advertised(output.text)


def parse_advertised(text: str) -> Advertised:
    """Return the branches and tags in the output of `git ls-remote --symref`."""
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
    """Return the object ids of the branches and tags of a trusted git directory, by full ref name."""
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


# ------------------------------------------------------------ making git directories

_PACK_FILES = (".pack", ".idx", ".rev", ".promisor")
ConfigVariable = tuple[str, str, str, str]
"""Section, subsection, key and value."""


def make_git_dir(
    git_dir: Path, head: str, config: Iterable[ConfigVariable], refs: Mapping[str, str]
) -> None:
    """Create a git directory without objects. Raises OSError.

    Args:
        git_dir: Where to create it.
        head: HEAD, as a full ref name or an object id.
        config: Its configuration.
        refs: Object ids by full ref name.
    """
    for folder in ("objects/pack", "objects/info", "refs/heads", "refs/tags", "info"):
        (git_dir / folder).mkdir(parents=True)
    target = f"ref: {head}" if head.startswith("refs/") else head
    (git_dir / "HEAD").write_text(f"{target}\n", encoding="utf-8")
    (git_dir / "config").write_text(config_text(config), encoding="utf-8")
    lines = [f"{oid} {name}\n" for name, oid in refs.items()]
    (git_dir / "packed-refs").write_text("".join(sorted(lines)), encoding="utf-8")


def base_config(bare: bool, object_format: str, promisor: bool) -> list[ConfigVariable]:
    """Return the configuration that git needs for a git directory."""
    extended = promisor or object_format != "sha1"
    config = [
        ("core", "", "repositoryformatversion", "1" if extended else "0"),
        ("core", "", "filemode", "true"),
        ("core", "", "bare", "true" if bare else "false"),
    ]
    if not bare:
        config.append(("core", "", "logallrefupdates", "true"))
    if object_format != "sha1":
        config.append(("extensions", "", "objectformat", object_format))
    if promisor:
        config.append(("extensions", "", "partialclone", "origin"))
        config.append(("remote", "origin", "promisor", "true"))
        config.append(("remote", "origin", "partialclonefilter", "blob:none"))
    return config


def config_text(config: Iterable[ConfigVariable]) -> str:
    """Return a git config file. Values are quoted, so that none can begin a section.

    Raises ValueError for a line break in a value.
    """
    lines = []
    for section, subsection, key, value in config:
        heading = f'{section} "{_escaped(subsection)}"' if subsection else section
        lines.append(f'[{heading}]\n\t{key} = "{_escaped(value)}"\n')
    return "".join(lines)


def _escaped(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError("a value of the git config has a line break")
    return text.replace("\\", "\\\\").replace('"', '\\"')


def link_objects(source: Path, target: Path) -> None:
    """Link the objects of `source` into `target`, or copy them where links are impossible.

    For trusted git directories and mirrors only: git never changes a pack in place. Raises OSError.
    """
    _transfer(source, target, _link_or_copy)


def copy_objects(source: Path, target: Path) -> None:
    """Copy the objects of `source` into `target`. Raises OSError."""
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
    """Copy a file within the kernel, which shares blocks where the file system can. Raises OSError."""
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
