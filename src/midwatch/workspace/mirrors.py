"""Warm mirrors: one bare repository per URL, shared by every session of a user.

Readers hold a shared lock while they copy, so nothing changes under them; who clones keeps nothing of
the mirror, so pruning it never breaks a clone. A mirror that is not whole is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from midwatch.workspace.errors import (
    CacheBusy,
    GitFailed,
    RepositoryCorrupted,
    RepositoryNotFound,
)
from midwatch.workspace.git import Command, Git, OnProgress
from midwatch.workspace.locks import locked, locked_if_free
from midwatch.workspace.refs import Advertised, read_refs
from midwatch.workspace.urls import Remote

DEFAULT_MAX_BYTES = 20_000_000_000
_MANIFEST = "midwatch.json"
_NAME_LENGTH = 40
_TRIES = 3
_REPACK_ABOVE = 12  # packs; each fetch that brings something adds one


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror on disk; `size` in bytes, `used_at` when a session last cloned from it."""

    url: str
    path: Path
    size: int
    used_at: datetime


class Mirrors:
    """The mirrors under `root`, together at most `max_bytes` large (the oldest use goes first).

    `wait` is how many seconds a session waits for another that fetches the same mirror.
    """

    def __init__(
        self,
        root: Path,
        git: Git,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        wait: float = 900.0,
    ) -> None:
        self._root = root
        self._git = git
        self._max_bytes = max_bytes
        self._wait = wait

    @contextlib.asynccontextmanager
    async def reading(
        self,
        remote: Remote,
        advertised: Advertised,
        on_progress: OnProgress | None = None,
    ) -> AsyncIterator[Path]:
        """A mirror that has what the remote advertises, unchanged while inside."""
        # Private repositories: for their owner alone.
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, brought = self.path_of(remote), False
        for _ in range(_TRIES):
            async with self._locked(path, shared=True):
                # What was just brought counts even if the remote has moved on since it was asked.
                if _is_warm(path, advertised) or (brought and _is_whole(path)):
                    os.utime(path / _MANIFEST)
                    yield path
                    return
            async with self._locked(path, shared=False):
                # Whoever held the lock before may have brought just this.
                if not _is_warm(path, advertised):
                    await self._bring(path, remote, on_progress)
                brought = True
            self.prune(self._max_bytes, keep=path)
        raise CacheBusy(f"the mirror of {remote.url} is removed again and again")

    async def discard(self, remote: Remote) -> None:
        """Forget the mirror of a repository, because it turned out to be broken."""
        path = self.path_of(remote)
        async with self._locked(path, shared=False):
            self._remove(path)

    def path_of(self, remote: Remote) -> Path:
        name = hashlib.sha256(remote.transport_url.encode()).hexdigest()[:_NAME_LENGTH]
        return self._root / f"{name}.git"

    def listed(self) -> list[Mirror]:
        """All mirrors, the one used last first."""
        found = [_described(path) for path in self._root.glob("*.git")]
        return sorted((m for m in found if m), key=lambda m: m.used_at, reverse=True)

    def prune(self, max_bytes: int = 0, *, keep: Path | None = None) -> list[Mirror]:
        """Remove the mirrors used longest ago until `max_bytes` are left; those in use stay."""
        self._sweep()
        mirrors = self.listed()
        total, removed = sum(mirror.size for mirror in mirrors), []
        for mirror in reversed(mirrors):
            if total <= max_bytes:
                break
            with locked_if_free(self._lock_of(mirror.path)) as free:
                if free and mirror.path != keep:
                    self._remove(mirror.path)
                    total -= mirror.size
                    removed.append(mirror)
        return removed

    def _sweep(self) -> None:
        """Remove what killed processes left half made."""
        for half in self._trash.glob("*"):
            with locked_if_free(self._lock_of(half)) as free:
                if free:
                    shutil.rmtree(half, ignore_errors=True)

    @property
    def _trash(self) -> Path:
        return self._root / "trash"

    def _lock_of(self, path: Path) -> Path:
        return self._root / "locks" / f"{path.name[:_NAME_LENGTH]}.lock"

    def _locked(
        self, path: Path, *, shared: bool
    ) -> contextlib.AbstractAsyncContextManager[None]:
        return locked(
            self._lock_of(path), self._git.clock, shared=shared, seconds=self._wait
        )

    async def _bring(
        self, path: Path, remote: Remote, on_progress: OnProgress | None
    ) -> None:
        """Fetch into the mirror, or make it (anew, if it is broken). The lock is held alone."""
        if _is_whole(path):
            try:
                await self._fetch(path, remote, on_progress)
            except (RepositoryCorrupted, RepositoryNotFound, GitFailed):
                # The remote answered a moment ago: what is broken is the mirror.
                await self._create(path, remote, on_progress)
        else:
            await self._create(path, remote, on_progress)

    async def _fetch(
        self, path: Path, remote: Remote, on_progress: OnProgress | None
    ) -> None:
        await self._transfer(
            ["fetch", "--prune", "--no-tags", "--no-write-fetch-head", "--progress"]
            + ["--end-of-options", remote.transport_url]
            + ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"],
            remote,
            on_progress,
            path,
        )
        if len(_packs(path)) > _REPACK_ABOVE:
            repack = ["repack", "--geometric=2", "-d", "-q"]
            await self._git.run(Command(repack, repository=remote.url, git_dir=path))
        _write_manifest(path, remote)

    async def _create(
        self, path: Path, remote: Remote, on_progress: OnProgress | None
    ) -> None:
        self._remove(path)
        fresh = self._trash_for(path)
        try:
            await self._transfer(
                ["clone", "--bare", "--template=", "--progress"]
                + ["--end-of-options", remote.transport_url, str(fresh)],
                remote,
                on_progress,
            )
            _write_manifest(fresh, remote)
            fresh.rename(path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    async def _transfer(
        self,
        args: list[str],
        remote: Remote,
        on_progress: OnProgress | None,
        git_dir: Path | None = None,
    ) -> None:
        command = Command(
            args,
            repository=remote.url,
            git_dir=git_dir,
            remote=remote,
            on_progress=on_progress,
        )
        await self._git.retry(lambda: self._git.run(command))

    def _remove(self, path: Path) -> None:
        """Out of the way at once, then gone. The lock is held alone."""
        if not path.exists():
            return
        trash = self._trash_for(path)
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _trash_for(self, path: Path) -> Path:
        """A fresh place whose name begins with that of the mirror, and so of its lock."""
        self._trash.mkdir(parents=True, exist_ok=True)
        return self._trash / f"{path.stem}-{secrets.token_hex(8)}"


def _is_warm(path: Path, advertised: Advertised) -> bool:
    return _is_whole(path) and read_refs(path) == dict(advertised.refs)


def _is_whole(path: Path) -> bool:
    """Whether the packs are those that the last fetch left: same names, same sizes."""
    manifest = _read_manifest(path)
    return manifest is not None and manifest.get("packs") == _packs(path)


def _read_manifest(path: Path) -> dict[str, object] | None:
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _write_manifest(path: Path, remote: Remote) -> None:
    manifest = {"url": remote.url, "packs": _packs(path)}
    temporary = path / f"{_MANIFEST}.new"
    temporary.write_text(json.dumps(manifest), encoding="utf-8")
    temporary.rename(path / _MANIFEST)


def _packs(path: Path) -> dict[str, int]:
    try:
        entries = list(os.scandir(path / "objects" / "pack"))
    except OSError:
        return {}
    return {
        e.name: e.stat().st_size for e in entries if e.name.endswith((".pack", ".idx"))
    }


def _described(path: Path) -> Mirror | None:
    """None while another process removes it."""
    try:
        used_at = datetime.fromtimestamp((path / _MANIFEST).stat().st_mtime, UTC)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    except OSError:
        return None
    url = (_read_manifest(path) or {}).get("url", "")
    return Mirror(str(url), path, size, used_at)
