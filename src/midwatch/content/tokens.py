"""Tokens for folders: a JWT that says which folder may be written and which may be read.

Operator and proxy share a key. `sub` is the folder that may be written and read, `read` are those
that may be read as well. The algorithm is pinned: a token cannot choose how it is checked.
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
"""Bytes of a key at least: as many as HS256's hash has (RFC 7518, 3.2)."""
_LONGEST_TOKEN = 8192
_LARGEST_FILE = 1 << 16
_LEEWAY = 60
"""Seconds that the clocks of operator and proxy may be apart."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token allows."""

    folder: str
    read: frozenset[str] = frozenset()

    def may_write(self, folder: str) -> bool:
        return folder == self.folder

    def may_read(self, folder: str) -> bool:
        return folder == self.folder or folder in self.read


def read_keys(file: Path) -> tuple[bytes, ...]:
    """The keys in a file, one a line: the first signs, all of them verify. Raises SettingsError.

    So a key is replaced in two steps: put the new one first, and take the old one out when every
    session that has a token of it is over. Operator and proxy see either without a restart.
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
            f"{file} has no key of at least {SHORTEST_KEY} bytes in every line",
            path="content.key_file",
            hint="make one: openssl rand -hex 32",
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
    """A token. Raises PathRefused for what is no folder's id, SettingsError for a short key."""
    if len(key) < SHORTEST_KEY:
        raise SettingsError(
            f"a key for tokens has at least {SHORTEST_KEY} bytes",
            hint="make one: openssl rand -hex 32",
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
    """What the token allows, if one of the keys signed it. Raises TokenRefused."""
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
        raise TokenRefused("the token names no folder") from None


def _claims(keys: Sequence[bytes], token: str) -> dict[str, Any]:
    for key in keys:
        try:
            # Times are checked by us, against an injected clock.
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
        except jwt.InvalidIssuerError:
            raise TokenRefused("the token is not one of Midwatch's") from None
        except jwt.PyJWTError:
            raise TokenRefused("that is no token of Midwatch's") from None
    raise TokenRefused("the token was signed with another key")


def _check_time(claims: dict[str, Any], now: datetime) -> None:
    issued, expires = claims["iat"], claims.get("exp")
    if not isinstance(issued, (int, float)):
        raise TokenRefused("the token does not say when it was issued")
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


# ------------------------------------------------------------ keys
# The keys of tokens while the server runs: read again when their file changed, so that a key can be replaced.

Keys = Callable[[], Sequence[bytes]]
"""What verifies a token now."""
_Mark = tuple[int, ...]


class KeyFile:
    """`Keys` of a file; one `stat` a call. What cannot be read any more leaves the keys as they were."""

    def __init__(self, file: Path, keys: Sequence[bytes], log: Log) -> None:
        self._file = file
        self._keys = tuple(keys)
        self._log = log
        self._read: _Mark | None = None
        self._failed: _Mark | None = None

    def __call__(self) -> Sequence[bytes]:
        # Before it is read: a change in between shows at the next call.
        mark = _mark_of(self._file)
        if mark != self._read:
            self._again(mark)
        return self._keys

    def _again(self, mark: _Mark) -> None:
        try:
            keys = read_keys(self._file)
        except SettingsError as error:
            # It is tried at each call, and told once for each state of the file.
            if mark != self._failed:
                self._log.error(
                    "keys cannot be read, the old ones stay", error=str(error)
                )
            self._failed = mark
            return
        self._read, self._failed = mark, None
        if keys != self._keys:
            self._keys = keys
            self._log.info("keys have changed", keys=len(keys))


def _mark_of(file: Path) -> _Mark:
    """Follows symlinks: Kubernetes replaces a mounted secret by pointing one elsewhere."""
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
