"""Mirrors: one bare repository per URL, shared by all sessions of a user.

Readers hold a shared lock while they copy, so the mirror does not change meanwhile. A clone has objects
of its own, so that pruning a mirror never breaks it. An incomplete mirror is created again.
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

from midwatch.files import locked, locked_if_free, read_regular, replace_file
from midwatch.workspace.errors import (
    CacheBusy,
    GitFailed,
    RepositoryCorrupted,
    RepositoryNotFound,
)
from midwatch.workspace.git import Git, GitCommand, OnProgress
from midwatch.workspace.refs import Advertised, read_refs
from midwatch.workspace.urls import Remote

DEFAULT_MAX_BYTES = 20_000_000_000
_MANIFEST = "midwatch.json"
_NAME_LENGTH = 40
_TRIES = 3
_REPACK_ABOVE = 12  # packs; each fetch of new objects adds one


@dataclass(frozen=True, slots=True)
class Mirror:
    """A mirror on disk: its size in bytes, and when a session last cloned from it."""

    url: str
    path: Path
    size: int
    used_at: datetime


class Mirrors:
    """The mirrors under a folder.

    Args:
        root: The folder; it is created if it is missing.
        git: Runs git.
        max_bytes: The largest size of all mirrors together; those used longest ago are removed.
        wait: Seconds to wait for another session that uses the same mirror.
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
        """Yield a mirror with the refs that the remote advertises, unchanged while the block runs.

        Args:
            remote: The remote.
            advertised: Its refs.
            on_progress: Called with the progress of a fetch.

        Raises:
            CacheBusy: Other sessions hold the mirror for longer than `wait` seconds.
            RepositoryError: The remote failed.
        """
        # Repositories may be private: readable by the owner only.
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, fetched = self.path_of(remote), False
        for _ in range(_TRIES):
            async with self._locked(path, shared=True):
                # What was just fetched counts even if the remote has changed since it was queried.
                if _is_current(path, advertised) or (fetched and _is_complete(path)):
                    os.utime(path / _MANIFEST)
                    yield path
                    return
            async with self._locked(path, shared=False):
                # The previous holder of the lock may have fetched the same.
                if not _is_current(path, advertised):
                    await self._update(path, remote, on_progress)
                fetched = True
            self.prune(self._max_bytes, keep=path)
        raise CacheBusy(
            f"the mirror of {remote.url} was removed {_TRIES} times before it was read",
            hint="raise `mirror_bytes`, the largest size of all mirrors",
        )

    @contextlib.asynccontextmanager
    async def as_fetched(self, remote: Remote) -> AsyncIterator[Path | None]:
        """Yield the mirror as the last fetch left it, unchanged while the block runs; None without a complete one.

        For what is read while the remote does not answer: nothing is asked of it. Raises CacheBusy.
        """
        path = self.path_of(remote)
        if not path.exists():
            yield None
            return
        async with self._locked(path, shared=True):
            yield path if _is_complete(path) else None

    async def discard(self, remote: Remote) -> None:
        """Remove the mirror of a repository, which is broken. Raises CacheBusy."""
        path = self.path_of(remote)
        async with self._locked(path, shared=False):
            self._remove(path)

    def path_of(self, remote: Remote) -> Path:
        """Return where the mirror of a remote is."""
        name = hashlib.sha256(remote.transport_url.encode()).hexdigest()[:_NAME_LENGTH]
        return self._root / f"{name}.git"

    def listed(self) -> list[Mirror]:
        """Return all mirrors, the most recently used first."""
        found = [_described(path) for path in self._root.glob("*.git")]
        return sorted((m for m in found if m), key=lambda m: m.used_at, reverse=True)

    def prune(self, max_bytes: int = 0, *, keep: Path | None = None) -> list[Mirror]:
        """Remove mirrors, those used longest ago first. Mirrors in use stay.

        Args:
            max_bytes: The size of all mirrors to keep.
            keep: A mirror that stays.

        Returns:
            The removed mirrors.
        """
        self._sweep()
        mirrors = self.listed()
        total, removed = sum(mirror.size for mirror in mirrors), []
        for mirror in reversed(mirrors):
            if total <= max_bytes:
                break
            with locked_if_free(self._lock_of(mirror.path)) as held:
                if held and mirror.path != keep:
                    self._remove(mirror.path)
                    total -= mirror.size
                    removed.append(mirror)
        return removed

    def _sweep(self) -> None:
        """Remove incomplete mirrors of killed processes."""
        for leftover in self._trash.glob("*"):
            with locked_if_free(self._lock_of(leftover)) as held:
                if held:
                    shutil.rmtree(leftover, ignore_errors=True)

    @property
    def _trash(self) -> Path:
        return self._root / "trash"

    def _lock_of(self, path: Path) -> Path:
        return self._root / "locks" / f"{path.name[:_NAME_LENGTH]}.lock"

    @contextlib.asynccontextmanager
    async def _locked(self, path: Path, *, shared: bool) -> AsyncIterator[None]:
        lock, clock = self._lock_of(path), self._git.clock
        async with locked(lock, clock, shared=shared, seconds=self._wait) as held:
            if not held:
                raise CacheBusy(f"{lock.name} is still locked after {self._wait:g} s")
            yield

    async def _update(
        self, path: Path, remote: Remote, on_progress: OnProgress | None
    ) -> None:
        """Fetch into the mirror; create it if it is missing or broken. The caller holds the lock."""
        if _is_complete(path):
            try:
                await self._fetch(path, remote, on_progress)
            except (RepositoryCorrupted, RepositoryNotFound, GitFailed):
                # The remote answered a moment ago, so the mirror is broken.
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
            await self._git.run(GitCommand(repack, repository=remote.url, git_dir=path))
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
        command = GitCommand(
            args,
            repository=remote.url,
            git_dir=git_dir,
            remote=remote,
            on_progress=on_progress,
        )
        await self._git.retry(lambda: self._git.run(command))

    def _remove(self, path: Path) -> None:
        """Rename the mirror, then remove it. The caller holds the lock."""
        if not path.exists():
            return
        trash = self._trash_for(path)
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    def _trash_for(self, path: Path) -> Path:
        """Return a new path whose name begins with that of the mirror, and so of its lock."""
        self._trash.mkdir(parents=True, exist_ok=True)
        return self._trash / f"{path.stem}-{secrets.token_hex(8)}"


def _is_current(path: Path, advertised: Advertised) -> bool:
    return _is_complete(path) and read_refs(path) == dict(advertised.refs)


def _is_complete(path: Path) -> bool:
    """Return whether the packs have the names and sizes that the last fetch left."""
    manifest = _read_manifest(path)
    return manifest is not None and manifest.get("packs") == _packs(path)


def _read_manifest(path: Path) -> dict[str, object] | None:
    try:
        manifest = json.loads(read_regular(path / _MANIFEST))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _write_manifest(path: Path, remote: Remote) -> None:
    manifest = {"url": remote.url, "packs": _packs(path)}
    # A lost manifest costs a clone: it need not be on the disk at once.
    replace_file(path / _MANIFEST, json.dumps(manifest).encode(), durable=False)


def _packs(path: Path) -> dict[str, int]:
    try:
        entries = list(os.scandir(path / "objects" / "pack"))
    except OSError:
        return {}
    return {
        e.name: e.stat().st_size for e in entries if e.name.endswith((".pack", ".idx"))
    }


def _described(path: Path) -> Mirror | None:
    """Return the mirror, or None if another process removes it."""
    try:
        used_at = datetime.fromtimestamp((path / _MANIFEST).stat().st_mtime, UTC)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    except OSError:
        return None
    url = (_read_manifest(path) or {}).get("url", "")
    return Mirror(str(url), path, size, used_at)
