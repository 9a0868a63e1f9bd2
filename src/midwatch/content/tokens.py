"""Tokens: a JWT with the folder that its holder may write and the folders that it may read.

Operator and proxy share a key. `sub` is the folder that may be read and written, `read` are further folders
that may be read. The algorithm is pinned: a token cannot choose how it is verified.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt

from midwatch.content.errors import PathRefused, TokenRefused
from midwatch.content.tree import check_folder
from midwatch.errors import SettingsError
from midwatch.logs import Log
from midwatch.model import Json

ISSUER = "midwatch"
SHORTEST_KEY = 32
"""Bytes of a key at least: the length of HS256's hash (RFC 7518, 3.2)."""
_LONGEST_TOKEN = 8192
_LARGEST_FILE = 1 << 16
_LEEWAY = 60
"""Seconds that the clocks of operator and proxy may differ."""
_MAKE_KEY = "make one: openssl rand -hex 32"

Keys = Callable[[], Sequence[bytes]]
"""Returns the keys that verify a token now."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The permissions of a token: its own `folder`, and folders that it may only `read`."""

    folder: str
    read: frozenset[str] = frozenset()

    def may_write(self, folder: str) -> bool:
        return folder == self.folder

    def may_read(self, folder: str) -> bool:
        return folder == self.folder or folder in self.read


def read_keys(file: Path) -> tuple[bytes, ...]:
    """Return the keys in a file, one a line. The first one signs, all of them verify.

    So a key is replaced in two steps: put the new one first, and remove the old one when every session
    whose token it signed is over. Operator and proxy notice both without a restart.

    Raises:
        SettingsError: The file cannot be read, or a key is too short.
    """
    try:
        with file.open("rb") as opened:
            lines = opened.read(_LARGEST_FILE).splitlines()
    except OSError as error:
        raise SettingsError(
            f"cannot read {file}: {error.strerror}", path="content.key_file"
        ) from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys or any(len(key) < SHORTEST_KEY for key in keys):
        raise SettingsError(
            f"{file} must have a key of at least {SHORTEST_KEY} bytes in every line",
            path="content.key_file",
            hint=_MAKE_KEY,
        )
    return keys


def issue(
    key: bytes,
    folder: str,
    read: Sequence[str] = (),
    *,
    now: datetime,
    expires: datetime | None = None,
) -> str:
    """Return a signed token.

    Args:
        key: The signing key, at least `SHORTEST_KEY` bytes.
        folder: The id of the folder that may be read and written.
        read: Ids of further folders that may be read.
        now: The time of issue.
        expires: When the token ends; None for never.

    Raises:
        PathRefused: One of the ids is not valid.
        SettingsError: The key is too short.
    """
    if len(key) < SHORTEST_KEY:
        raise SettingsError(
            f"a key for tokens needs at least {SHORTEST_KEY} bytes", hint=_MAKE_KEY
        )
    claims: Json = {
        "iss": ISSUER,
        "sub": check_folder(folder),
        "read": [check_folder(other) for other in read],
        "iat": int(now.timestamp()),
    }
    if expires is not None:
        claims["exp"] = int(expires.timestamp())
    return jwt.encode(claims, key, algorithm="HS256")


def verify(keys: Sequence[bytes] | bytes, token: str, *, now: datetime) -> Grant:
    """Return the permissions of a token that one of the keys signed. Raises TokenRefused."""
    if len(token) > _LONGEST_TOKEN:
        raise TokenRefused("the token is too long")
    claims = _claims((keys,) if isinstance(keys, bytes) else keys, token)
    _check_time(claims, now)
    try:
        read = claims.get("read") or []
        if not isinstance(read, list):
            raise TypeError
        others = frozenset(check_folder(other) for other in read)
        return Grant(check_folder(claims["sub"]), others)
    except (PathRefused, TypeError):
        raise TokenRefused("the token does not name a folder") from None


def _claims(keys: Sequence[bytes], token: str) -> dict[str, Any]:
    for key in keys:
        try:
            # `_check_time` checks the times, against an injected clock.
            return jwt.decode(
                token,
                key,
                algorithms=["HS256"],
                issuer=ISSUER,
                options={
                    "require": ["iss", "sub", "iat"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.PyJWTError:
            raise TokenRefused("this is not a token of Midwatch") from None
    raise TokenRefused("the token was signed with another key")


def _check_time(claims: dict[str, Any], now: datetime) -> None:
    issued, expires = claims["iat"], claims.get("exp")
    if not isinstance(issued, (int, float)):
        raise TokenRefused("the token has no time of issue")
    if issued > now.timestamp() + _LEEWAY:
        raise TokenRefused(
            "the token is from the future", hint="check the clocks of the nodes"
        )
    if expires is None:
        return
    if not isinstance(expires, (int, float)) or not (
        expires > now.timestamp() - _LEEWAY
    ):
        raise TokenRefused("the token has expired", hint="start the session again")


class KeyFile:
    """`Keys` that are read again when their file changes; one `stat` per call.

    A file that cannot be read leaves the keys unchanged.
    """

    def __init__(self, file: Path, keys: Sequence[bytes], log: Log) -> None:
        self._file = file
        self._keys = tuple(keys)
        self._log = log
        self._read: tuple[int, ...] | None = None
        self._failed: tuple[int, ...] | None = None

    def __call__(self) -> Sequence[bytes]:
        # Before the file is read: a change in between shows at the next call.
        state = self._file_state()
        if state != self._read:
            self._reload(state)
        return self._keys

    def _reload(self, state: tuple[int, ...]) -> None:
        try:
            keys = read_keys(self._file)
        except SettingsError as error:
            # Retried at each call, and logged once for each state of the file.
            if state != self._failed:
                self._log.error(
                    "keys cannot be read, the old ones stay", error=str(error)
                )
            self._failed = state
            return
        self._read, self._failed = state, None
        if keys != self._keys:
            self._keys = keys
            self._log.info("keys have changed", keys=len(keys))

    def _file_state(self) -> tuple[int, ...]:
        """Return what changes with the file. Kubernetes replaces a mounted secret by changing a symlink."""
        try:
            stat = os.stat(self._file)
        except OSError:
            return ()
        return (
            stat.st_dev,
            stat.st_ino,
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ctime_ns,
        )
