"""Transcripts of the claude program: stored in files or a database, and read before a run starts.

A run reads how far the turn of a prompt came (`turn_outcome`) and the usage so far (`spent_before`), to
which the program adds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from midwatch.files import open_regular, replace_file
from midwatch.model import Usage
from midwatch.redaction import Redactor
from midwatch.session.events import ModelUsage
from midwatch.session.log import append_line, map_disk_error
from midwatch.session.records import TranscriptKey, Transcripts


def spend_by_model(model_usage: Mapping[str, Any]) -> dict[str, ModelUsage]:
    """Return the usage per model from the program's `modelUsage`, in a result or a transcript."""
    return {
        name: _model_usage(used)
        for name, used in model_usage.items()
        if isinstance(used, Mapping)
    }


def usage_since(
    total: Mapping[str, ModelUsage], before: Mapping[str, ModelUsage]
) -> dict[str, ModelUsage]:
    """Return the usage since `before`, without models that were not used; never negative."""
    more = {
        name: _difference(cost, before.get(name, ModelUsage()))
        for name, cost in total.items()
    }
    return {name: cost for name, cost in more.items() if cost != ModelUsage()}


def cheaper_usage(
    one: Mapping[str, ModelUsage], other: Mapping[str, ModelUsage]
) -> dict[str, ModelUsage]:
    """Return, for each model in both, the usage that costs less."""
    return {
        name: min(one[name], other[name], key=lambda spend: spend.cost_usd)
        for name in one
        if name in other
    }


def _model_usage(used: Mapping[str, Any]) -> ModelUsage:
    usage = Usage(
        input_tokens=int(used.get("inputTokens") or 0),
        output_tokens=int(used.get("outputTokens") or 0),
        cache_read_tokens=int(used.get("cacheReadInputTokens") or 0),
        cache_write_tokens=int(used.get("cacheCreationInputTokens") or 0),
    )
    return ModelUsage(usage, float(used.get("costUSD") or 0.0))


def _difference(total: ModelUsage, before: ModelUsage) -> ModelUsage:
    counts = zip(astuple(total.usage), astuple(before.usage), strict=True)
    usage = Usage(*(max(0, now - then) for now, then in counts))
    return ModelUsage(usage, max(0.0, round(total.cost_usd - before.cost_usd, 9)))


PROJECT = "midwatch"
"""The project key of all sessions. The program's own, a path, differs between machines."""
_END_REASONS = frozenset({"end_turn", "stop_sequence", "max_tokens", "refusal"})
_MAX_NAME = 200
_UNREDACTED = frozenset(
    {
        *("type", "uuid", "parentUuid", "logicalParentUuid", "leafUuid", "sessionId"),
        *("timestamp", "requestId", "promptId", "id", "tool_use_id", "toolUseID"),
        *("signature", "data", "version", "gitBranch", "cwd", "role", "model"),
    }
)
"""Fields of a transcript that are not redacted: ids, signatures, encoded images."""


class FileTranscripts:
    """Transcripts as JSON lines in a folder. One process writes a transcript at a time.

    Satisfies `midwatch.session.records.Transcripts`. Raises DiskFull, FolderUnusable, and ValueError for a
    part of a key that is empty or too long for a file name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._uuids: dict[Path, set[str]] = {}

    async def append(self, key: Any, entries: list[Any]) -> None:
        path = self._path(key)
        known = self._known(path)
        fresh = []
        for entry in entries:
            uuid = entry.get("uuid")
            if uuid is None or uuid not in known:
                fresh.append(entry)
            if uuid is not None:
                known.add(uuid)
        if fresh:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_line(path, b"".join(_line(entry) for entry in fresh))

    async def load(self, key: Any) -> list[Any] | None:
        path = self._path(key)
        return list(read_entries(path)) if path.is_file() else None

    async def list_sessions(self, project_key: str) -> list[Any]:
        """Return the sessions of a project, each with the time of its last change in ms since 1970."""
        found = (self.folder / _name(project_key)).glob("*/main.jsonl")
        return [
            {
                "session_id": unquote(path.parent.name),
                "mtime": max(int(path.stat().st_mtime * 1000), 0),
            }
            for path in found
        ]

    async def delete(self, key: Any) -> None:
        path = self._path(key)
        self._uuids = {p: u for p, u in self._uuids.items() if p != path}
        if key.get("subpath"):
            path.unlink(missing_ok=True)
        else:
            self._uuids = {
                p: u for p, u in self._uuids.items() if p.parent != path.parent
            }
            shutil.rmtree(path.parent, ignore_errors=True)

    async def list_subkeys(self, key: Any) -> list[str]:
        folder = self._path({**key, "subpath": ""}).parent
        names = sorted(path.stem for path in folder.glob("sub-*.jsonl"))
        return [unquote(name.removeprefix("sub-")) for name in names]

    def _path(self, key: Mapping[str, str]) -> Path:
        folder = self.folder / _name(key["project_key"]) / _name(key["session_id"])
        sub = key.get("subpath")
        return folder / (f"sub-{_name(sub)}.jsonl" if sub else "main.jsonl")

    def _known(self, path: Path) -> set[str]:
        if path not in self._uuids:
            entries = read_entries(path) if path.is_file() else ()
            self._uuids[path] = {e["uuid"] for e in entries if "uuid" in e}
        return self._uuids[path]


def _line(entry: Any) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _name(text: str) -> str:
    """Return a file name for a part of a key, which may have any characters. Raises ValueError if it is too long."""
    name = quote(text, safe="").replace(".", "%2E")
    if not name or len(name) > _MAX_NAME:
        raise ValueError(f"a key of 1 to {_MAX_NAME} characters is needed")
    return name


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a transcript file; incomplete lines are skipped. Raises FolderUnusable."""
    try:
        opened = open_regular(path)
    except OSError as error:
        raise map_disk_error(error, path) from error
    with os.fdopen(opened, "rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry


class Mirror:
    """The session store for the Agent SDK. It only appends.

    Secrets are removed from what is appended; the program's own file on this disk is not changed.

    `load` returns None: the SDK would load a transcript into a temporary folder, which a crash leaves behind
    and the next run does not use. `restore` writes transcripts into the program's folder instead.
    """

    def __init__(self, store: Transcripts, redactor: Redactor) -> None:
        self._store = store
        self._redactor = redactor

    async def append(self, key: Any, entries: list[Any]) -> None:
        clean = [_redacted(entry, self._redactor) for entry in entries]
        await self._store.append({**key, "project_key": PROJECT}, clean)

    async def load(self, key: Any) -> None:
        return None


def _redacted(value: Any, redactor: Redactor) -> Any:
    """Return the value with its texts redacted, except for the fields in `_UNREDACTED`."""
    if isinstance(value, str):
        return redactor.text(value)
    if isinstance(value, list):
        return [_redacted(item, redactor) for item in value]
    if isinstance(value, dict):
        return {
            name: item if name in _UNREDACTED else _redacted(item, redactor)
            for name, item in value.items()
        }
    return value


async def restore(store: Transcripts | None, conversation: str, main: Path) -> bool:
    """Write the transcript of a conversation to the file `main`, and those of its subagents beside it.

    Return whether there is one. An existing file is not replaced: it is newer than the store.
    """
    if main.is_file():
        return True
    if store is None:
        return False
    key = TranscriptKey(project_key=PROJECT, session_id=conversation)
    entries = await store.load(key)
    if not entries:
        return False
    for sub in await store.list_subkeys(key):
        parts = sub.split("/")
        if any(part in ("", ".", "..") for part in parts):
            continue
        found = await store.load({**key, "subpath": sub}) or []
        path = main.with_suffix("").joinpath(*parts[:-1], f"{parts[-1]}.jsonl")
        _write(path, [e for e in found if e.get("type") != "agent_metadata"])
    _write(main, entries)
    return True


def _write(path: Path, entries: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, b"".join(_line(entry) for entry in entries), durable=False)


TurnState = Literal["unknown", "cut", "ended"]


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """How far the turn of a prompt came, by a transcript.

    Attributes:
        state: "unknown": the prompt is not in the transcript; "cut": its turn did not end; "ended": it did.
        text: The answer so far.
    """

    state: TurnState
    text: str = ""


def turn_outcome(entries: Iterable[Mapping[str, Any]], uuid: str) -> TurnOutcome:
    """Return the outcome of the turn for the prompt with this uuid."""
    outcome = TurnOutcome("unknown")
    for entry in entries:
        if entry.get("isSidechain"):
            continue
        if entry.get("uuid") == uuid and entry.get("type") == "user":
            outcome = TurnOutcome("cut")
        elif outcome.state != "unknown" and entry.get("type") in ("assistant", "user"):
            outcome = _next_outcome(entry, outcome)
    return outcome


def _next_outcome(entry: Mapping[str, Any], outcome: TurnOutcome) -> TurnOutcome:
    message = entry.get("message")
    if entry["type"] == "user" or not isinstance(message, Mapping):
        return TurnOutcome("cut", outcome.text)
    if entry.get("isApiErrorMessage"):  # the program wrote it to report an error
        return TurnOutcome("cut", outcome.text)
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    text = "\n".join(b["text"] for b in blocks if b.get("type") == "text")
    ended = message.get("stop_reason") in _END_REASONS
    return TurnOutcome("ended" if ended else "cut", text or outcome.text)


def spent_before(entries: Iterable[Mapping[str, Any]]) -> dict[str, ModelUsage]:
    """Return the usage in the program's last `cost-state`: where it starts to count when it resumes."""
    spent: dict[str, ModelUsage] = {}
    for entry in entries:
        if entry.get("type") == "cost-state":
            spent = spend_by_model(entry.get("modelUsage") or {})
    return spent
