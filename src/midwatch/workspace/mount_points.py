"""The mount points that the sandbox of Claude Code makes in a clone: hidden from git, and removed afterwards.

The program protects files that other programs run or trust, such as `.bashrc`, `.mcp.json` and
`.claude/settings.json`, from Bash in the sandbox. Where there is no such file, bubblewrap creates an empty one,
as the mount point of a device. In the sandbox that is a character device, which `git add -A` refuses; when the
program is killed in a command, the empty file stays. Seen with the program 2.1.330 and bubblewrap 0.8.

bubblewrap creates a mount point as an empty file of mode 0444, whatever the umask is. Neither git nor the
tools of the program create such a file, so a file of one of these names that somebody wrote is kept.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_PROGRAM = ".claude"
"""The folder of the program in a clone."""
NAMES = (
    *(".bash_profile", ".bashrc", ".gitconfig", ".gitmodules", ".idea", ".mcp.json"),
    *(".profile", ".ripgreprc", ".vscode", ".zprofile", ".zshrc", ".zshenv"),
    *(".bash_login", ".bash_logout", ".zlogin", ".zlogout"),
)
"""Names in the program's working directory that become mount points."""
_PROGRAM_NAMES = (
    *("agents", "commands", "hooks", "launch.json", "loop.md", "output-styles"),
    *("routines", "rules", "scheduled_tasks.json", "settings.json"),
    *("settings.local.json", "skills", "workflows"),
)
_EMPTY_FOLDERS = (".cc-writes",)
_IN_GIT = ("hooks", "config.lock", "config.worktree", "index.lock", "commondir")
_MODE = 0o444
_MOST_ENTRIES = 1000


def is_mount_point(path: Path) -> bool:
    """Return whether a path is a mount point that a sandbox made, and not a file that somebody wrote."""
    dotted = path.name.startswith(".") or path.parent.name == _PROGRAM
    in_git = path.parent.name == ".git" and path.name in _IN_GIT
    if not dotted and not in_git:
        return False
    try:
        found = os.lstat(path)
    except OSError:
        return False
    mode, size = stat.S_IMODE(found.st_mode), found.st_size
    return stat.S_ISREG(found.st_mode) and (mode, size, found.st_nlink) == (_MODE, 0, 1)


def remove_mount_points(folders: Sequence[Path]) -> int:
    """Remove what a sandbox left in the folders that a program has worked in. Return how many files it was.

    No program may run in them: a mount point that is removed no longer protects its file. What cannot be
    removed is left.
    """
    count = 0
    for folder in folders:
        for root in _roots(folder):
            for place in (root, root / _PROGRAM, root / ".git"):
                for path in _children(place, ("." if place == root else "")):
                    if is_mount_point(path):
                        with contextlib.suppress(OSError):
                            path.unlink()
                            count += 1
            _remove_empty(root / _PROGRAM)
    return count


def _roots(folder: Path) -> Iterator[Path]:
    """Yield a folder, and the worktrees that the program makes in it."""
    yield folder
    for path in _children(folder / _PROGRAM / "worktrees"):
        if _is_folder(path):
            yield path


def _children(folder: Path, prefix: str = "") -> list[Path]:
    """Return the first entries of a folder whose names have a prefix; none through a symbolic link."""
    if not _is_folder(folder) or not _is_folder(folder.parent):
        return []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        names = (entry.name for entry in entries if entry.name.startswith(prefix))
        return [folder / name for name in itertools.islice(names, _MOST_ENTRIES)]
    return []


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(os.lstat(path).st_mode)
    return False


def _remove_empty(program: Path) -> None:
    """Remove the program's folder if it has nothing but its own empty folders."""
    if _is_folder(program) and any(_is_folder(program / n) for n in _EMPTY_FOLDERS):
        with contextlib.suppress(OSError):  # something is in it
            for name in _EMPTY_FOLDERS:
                (program / name).rmdir()
            program.rmdir()


def hide_mount_points(
    folder: Path, cwd: Path, directories: Sequence[Path], env: Mapping[str, str]
) -> dict[str, str]:
    """Return `env` with variables that let git in a session ignore the mount points of its sandbox.

    A file that exists is not ignored. Git ignores the names only in the program's own directories.

    Args:
        folder: Where the files for git are written; outside of the workspace.
        cwd: The program's working directory.
        directories: Its other directories.
        env: The variables of the program.

    Raises:
        OSError: A file cannot be written.
    """
    known = _known_patterns(env)
    changed = dict(env)
    for number, root in enumerate((cwd, *directories)):
        names = NAMES if number == 0 else (".mcp.json",)
        top = _repository_of(root)
        if top is None:
            continue
        patterns = [f"/{_glob(p)}" for p in _missing(root, top, names)]
        exclude, config = (folder / f"{n}-{number}" for n in ("exclude", "config"))
        exclude.write_text(
            "\n".join([*known, *patterns, ""]), "utf-8", "surrogateescape"
        )
        config.write_text(
            f"[core]\n\texcludesFile = {_quoted(str(exclude))}\n", "utf-8"
        )
        # The pattern also matches linked worktrees, whose git directories are inside.
        _add(
            changed, f"includeIf.gitdir:{_glob(str(top.resolve()))}/.path", str(config)
        )
    return changed


def _repository_of(folder: Path) -> Path | None:
    """Return the work tree that a folder is in, or None."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place / ".git"):
            return place
    return None


def _missing(root: Path, top: Path, names: Sequence[str]) -> Iterator[str]:
    """Yield the names that do not exist in a directory, relative to its work tree."""
    inner = (*(f"{_PROGRAM}/{n}" for n in (*_PROGRAM_NAMES, *_EMPTY_FOLDERS)),)
    for name in (*names, *inner):
        if not os.path.lexists(root / name):
            yield str((root / name).relative_to(top))


def _known_patterns(env: Mapping[str, str]) -> list[str]:
    """Return what git ignores by default for this user, which the variables would replace."""
    config = env.get("XDG_CONFIG_HOME") or f"{env.get('HOME', '')}/.config"
    try:
        text = (Path(config) / "git" / "ignore").read_text("utf-8", "surrogateescape")
    except OSError:
        return ["**/.claude/settings.local.json"]  # as the program writes it
    return text.splitlines()


def _add(env: dict[str, str], key: str, value: str) -> None:
    count = env.get("GIT_CONFIG_COUNT", "0")
    if count.isdecimal():
        env[f"GIT_CONFIG_KEY_{count}"] = key
        env[f"GIT_CONFIG_VALUE_{count}"] = value
        env["GIT_CONFIG_COUNT"] = str(int(count) + 1)


def _glob(text: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
