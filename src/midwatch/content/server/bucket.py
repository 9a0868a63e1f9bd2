"""Folders in an object store: S3, Google Cloud Storage, Azure Blob Storage, and what speaks like one of them.

::

    PREFIX/.midwatch-content                  exists while the bucket is the right one
    PREFIX/folders/NAMESPACE/NAME.UID/
        manifest.jsonl                        the one commit point: replaced by a conditional put
        segments/ID.COUNT                     immutable: many chunks each
        used                                  when the folder was last used, if `content.keep_for` is set

The replicas of a proxy share nothing else. Credentials are those of the environment or of the service account, as
obstore finds them; nothing of what the store says in an error is passed on but its code.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from midwatch.content.errors import ContentUnavailable
from midwatch.content.server.objects import ManifestChanged, Overview, Tag
from midwatch.content.server.segments import Place, Stored, head_length, parse_head
from midwatch.content.tree import check_folder
from midwatch.errors import SettingsError

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_MARKER = ".midwatch-content"
_PROBE = ".midwatch-probe"
_FOLDERS = "folders"
_MANIFEST = "manifest.jsonl"
_SEGMENTS = "segments"
_USED = "used"
_PAGE = 1000
_AT_ONCE = 8
"""Heads of segments that are read at the same time."""
_USE_PARTS = 24
"""The time of use of a folder is as exact as this part of `content.keep_for`."""
_CONNECT, _REQUEST = timedelta(seconds=5), timedelta(seconds=30)
_RETRIES = 5
_RETRY_FOR = timedelta(seconds=30)
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_STATUS = re.compile(r"status code: ([1-5][0-9]{2}\b[A-Za-z ]{0,40})")


# ------------------------------------------------------------------ errors


def map_store_error(error: Exception) -> ContentUnavailable:
    """Return the error for a client. Nothing of the original text is in it: that may hold signatures and key ids."""
    text = str(error)
    code = _CODE.search(text) or _STATUS.search(text)
    why = code[1].strip() if code else type(error).__name__
    match error:
        case FileNotFoundError():
            return ContentUnavailable(
                f"the bucket of the content proxy is missing: {why}",
                hint="check content.url and the region, and create the bucket",
            )
        case PermissionDeniedError() | UnauthenticatedError():
            return ContentUnavailable(
                f"the object store refuses the content proxy: {why}",
                hint="its service account must read, write, list and delete objects below content.url",
            )
    if code is None:
        why = "it took too long" if "timed out" in text else "it cannot be reached"
    return ContentUnavailable(
        f"the object store failed: {why}",
        hint="check content.url, the network and the store; the request is retried",
        retry_after=2.0,
    )


@contextlib.contextmanager
def _map_store_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Map all errors of the store but these, which mean something to the caller."""
    try:
        yield
    except kinds:
        raise
    except (BaseError, FileNotFoundError, NotImplementedError) as error:
        raise map_store_error(error) from None


# ------------------------------------------------------------------ the bucket


class Bucket:
    """The folders in one bucket, which any number of processes may share: `Objects` over obstore.

    Every request has a time limit and is repeated with back-off, as long as that can help. Methods raise
    ContentUnavailable, and FileNotFoundError where `Objects` says so.

    Args:
        url: The bucket and a prefix, with one of `SCHEMES`.
        keep_for: Seconds that an unused folder is kept; None for ever.

    Raises:
        SettingsError: The URL is not one.
    """

    poll = 10.0

    def __init__(self, url: str, keep_for: float | None = None) -> None:
        _check_url(url)
        try:
            self._store: Any = from_url(
                url,
                client_options={
                    "connect_timeout": _CONNECT,
                    "timeout": _REQUEST,
                    # Only where the environment names an endpoint with http://, such as a store in the cluster.
                    "allow_http": True,
                },
                retry_config={
                    "max_retries": _RETRIES,
                    "retry_timeout": _RETRY_FOR,
                    "backoff": {
                        "init_backoff": timedelta(seconds=0.1),
                        "max_backoff": timedelta(seconds=3),
                    },
                },
            )
        except (BaseError, ValueError) as error:
            raise SettingsError(
                "this is not the URL of an object store, or its environment is not complete",
                path="content.url",
                hint="such as s3://BUCKET/PREFIX; see docs/kubernetes.md",
            ) from error
        self._use_every = None if keep_for is None else keep_for / _USE_PARTS
        self._uses: dict[str, float] = {}

    def open(self) -> None:
        """Check that the bucket can be written, and mark it. Raises ContentUnavailable."""
        with _map_store_errors(), contextlib.suppress(AlreadyExistsError):
            self._put(_MARKER, b"", mode="create")
        self.probe()

    def close(self) -> None:
        """There is nothing to free."""

    def _put(
        self, path: str, data: bytes, mode: Any = "overwrite"
    ) -> Mapping[str, Any]:
        # In one request: an upload in parts has no condition.
        return obstore.put(self._store, path, data, mode=mode, use_multipart=False)

    def _check_marked(self) -> None:
        """Raise ContentUnavailable if the bucket is gone: only while it is there, a missing object means empty."""
        with _map_store_errors():
            obstore.head(self._store, _MARKER)

    # -------------------------------------------------- the manifest

    def tag(self, folder: str) -> Tag | None:
        """Return the tag of a folder's manifest; None without one."""
        with _map_store_errors():
            try:
                return _tag(obstore.head(self._store, _path(folder, _MANIFEST)))
            except FileNotFoundError:
                return None

    def manifest(self, folder: str, known: Tag | None) -> tuple[Tag, BinaryIO | None]:
        """Return the manifest and its tag, as `Objects` says: one request, with If-None-Match."""
        path = _path(folder, _MANIFEST)
        try:
            with _map_store_errors(FileNotFoundError, NotModifiedError):
                found = obstore.get(
                    self._store,
                    path,
                    options={"if_none_match": known.etag} if known else {},
                )
                return _tag(found.meta), io.BytesIO(found.bytes())
        except NotModifiedError:
            assert known is not None
            return known, None
        except FileNotFoundError:
            self._check_marked()
            raise

    def replace(
        self,
        folder: str,
        pieces: Iterable[bytes],
        expected: Tag | None,
        needed: Collection[str],
    ) -> Tag:
        """Replace the manifest, as `Objects` says. No needed segment can be gone while the condition holds."""
        mode: Any = "create"
        if expected:
            mode = {"e_tag": expected.etag}
            if expected.version is not None:  # obstore refuses the None that it returns
                mode["version"] = expected.version
        try:
            with _map_store_errors(AlreadyExistsError, PreconditionError):
                data = b"".join(pieces)
                return _tag(self._put(_path(folder, _MANIFEST), data, mode))
        except (AlreadyExistsError, PreconditionError):
            raise ManifestChanged from None

    # -------------------------------------------------- segments

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Store a segment."""
        with _map_store_errors():
            self._put(_path(folder, name), data)

    def read(
        self, folder: str, name: str, ranges: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """Return ranges of a segment, as (start, length); close ones come in one request. Raises FileNotFoundError."""
        with _map_store_errors(FileNotFoundError):
            found = obstore.get_ranges(
                self._store,
                _path(folder, name),
                starts=[start for start, _ in ranges],
                lengths=[length for _, length in ranges],
            )
            return [bytes(piece) for piece in found]

    def heads(
        self, folder: str, names: Sequence[str]
    ) -> Mapping[str, Mapping[bytes, Place]]:
        """Return where the chunks of these segments are; nothing for a segment that is gone."""

        def head(name: str) -> tuple[str, Mapping[bytes, Place]]:
            length = head_length(name)
            try:
                data = self.read(folder, name, [(0, length)])[0] if length else b""
            except FileNotFoundError:
                data = b""
            return name, parse_head(name, data)

        if len(names) <= 1:
            return dict(map(head, names))
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="heads") as pool:
            return dict(pool.map(head, names))

    def segments(self, folder: str) -> list[Stored]:
        """Return the segments that exist."""
        return [
            _stored(meta, _path(folder, ""))
            for meta in self._list(_path(folder, _SEGMENTS))
        ]

    def _list(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        with _map_store_errors():
            for page in obstore.list(self._store, prefix, chunk_size=_PAGE):
                yield from page

    def delete(self, folder: str, names: Collection[str]) -> None:
        """Delete segments."""
        self._delete([_path(folder, name) for name in names])

    def _delete(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), _PAGE):
            with _map_store_errors(), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, list(paths[start : start + _PAGE]))

    def renew(self, folder: str, segment: Stored) -> None:
        """Copy a segment, within the store: its age begins again, under another name."""
        count = segment.name.rpartition(".")[2]
        copy = f"{_SEGMENTS}/{uuid.uuid4().hex}.{count}"
        with _map_store_errors(FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                obstore.copy(
                    self._store, _path(folder, segment.name), _path(folder, copy)
                )

    # -------------------------------------------------- folders

    def overview(self) -> Iterator[Overview]:
        """Yield all folders: a request for a thousand objects. At the end forget the uses of others."""
        present = set()

        def folder_of(meta: Mapping[str, Any]) -> str:
            return "/".join(str(meta["path"]).split("/")[1:3])

        for folder, group in itertools.groupby(self._list(_FOLDERS), key=folder_of):
            prefix = f"{_FOLDERS}/{folder}/"
            found = {str(m["path"]).removeprefix(prefix): m for m in group}
            manifest = found.pop(_MANIFEST, None)
            segments = [
                _stored(meta, prefix)
                for name, meta in found.items()
                if name.startswith(f"{_SEGMENTS}/")
            ]
            times = [*found.values(), *([manifest] if manifest else [])]
            used = max(meta["last_modified"].timestamp() for meta in times)
            present.add(folder)
            yield Overview(folder, _tag(manifest) if manifest else None, segments, used)
        for folder in self._uses.keys() - present:
            self._uses.pop(folder, None)

    def remove(
        self,
        folder: str,
        tag: Tag | None,
        tombstone: Iterable[bytes],
        names: Collection[str],
    ) -> bool:
        """Put the tombstone in the place of the manifest, then delete the segments. Return whether there was any."""
        if tag is None and not names:
            return False
        self.replace(folder, tombstone, tag, ())
        self._delete([_path(folder, name) for name in (*names, _USED)])
        self._uses.pop(folder, None)
        return True

    def forget(self, folder: str, tag: Tag | None, before: float) -> None:
        """Delete a manifest of nothing, unless it has changed: no store deletes on a condition, so it must be old."""
        path = _path(folder, _MANIFEST)
        with _map_store_errors(FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                meta = obstore.head(self._store, path)
                if _tag(meta) == tag and meta["last_modified"].timestamp() < before:
                    self._delete([path])

    def use(self, folder: str) -> None:
        """Record that a folder is read or written, if unused folders are removed."""
        now = time.monotonic()
        last = self._uses.get(check_folder(folder))
        if self._use_every is None or (last and now - last < self._use_every):
            return
        self._uses[folder] = now
        with contextlib.suppress(ContentUnavailable), _map_store_errors():
            self._put(_path(folder, _USED), b"")

    # -------------------------------------------------- the whole bucket

    def probe(self) -> None:
        """Write an object, and look for the marker."""
        with _map_store_errors():
            self._put(_PROBE, b"")
        self._check_marked()

    def clean(self) -> None:
        """There is nothing that a process leaves behind: an object exists as a whole or not at all."""

    def disk_usage(self) -> tuple[int, int] | None:
        """Return None: a bucket has no end."""
        return None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise SettingsError(
            "this is not the URL of an object store",
            path="content.url",
            hint=f"it begins with one of {', '.join(SCHEMES)}, such as s3://BUCKET/PREFIX",
        )
    # `abfss://CONTAINER@ACCOUNT…` has an @, and no secret before it.
    if parts.password is not None or parts.query:
        raise SettingsError(
            "this URL has credentials in it",
            path="content.url",
            hint="put them into the environment, or give the service account the permission",
        )


def _path(folder: str, name: str) -> str:
    return f"{_FOLDERS}/{check_folder(folder)}/{name}"


def _tag(meta: Mapping[str, Any]) -> Tag:
    if not meta["e_tag"]:
        raise ContentUnavailable(
            "the object store gives no ETag, so that no change can be conditional",
            hint="use a store that supports If-Match",
        )
    return Tag(meta["e_tag"], meta["version"])


def _stored(meta: Mapping[str, Any], prefix: str) -> Stored:
    name = str(meta["path"]).removeprefix(prefix)
    return Stored(name, int(meta["size"]), meta["last_modified"].timestamp())
