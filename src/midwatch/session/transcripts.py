"""Transcripts of the claude program: kept in files or a store, and read before a run starts.

A run reads what the program has done with a prompt (`turn_outcome`) and what it has spent already
(`spent_before`): the program counts on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from midwatch.files import replace_file
from midwatch.model import Usage
from midwatch.redaction import Redactor
from midwatch.session.events import ModelUsage
from midwatch.session.log import append_line
from midwatch.session.records import TranscriptKey, Transcripts


def spend_by_model(model_usage: Mapping[str, Any]) -> dict[str, ModelUsage]:
    """Return the usage per model from the program's `modelUsage`, in a result or a transcript."""
    return {
        name: _spend(used)
        for name, used in model_usage.items()
        if isinstance(used, Mapping)
    }


def added(
    total: Mapping[str, ModelUsage], before: Mapping[str, ModelUsage]
) -> dict[str, ModelUsage]:
    """Return what was added since `before`, without models that added nothing; never negative."""
    more = {
        name: _less(cost, before.get(name, ModelUsage()))
        for name, cost in total.items()
    }
    return {name: cost for name, cost in more.items() if cost != ModelUsage()}


def lesser(
    one: Mapping[str, ModelUsage], other: Mapping[str, ModelUsage]
) -> dict[str, ModelUsage]:
    """Return, for each model in both, the usage that costs less."""
    return {
        name: min(one[name], other[name], key=lambda spend: spend.cost_usd)
        for name in one
        if name in other
    }


def _spend(used: Mapping[str, Any]) -> ModelUsage:
    usage = Usage(
        input_tokens=int(used.get("inputTokens") or 0),
        output_tokens=int(used.get("outputTokens") or 0),
        cache_read_tokens=int(used.get("cacheReadInputTokens") or 0),
        cache_write_tokens=int(used.get("cacheCreationInputTokens") or 0),
    )
    return ModelUsage(usage, float(used.get("costUSD") or 0.0))


def _less(total: ModelUsage, before: ModelUsage) -> ModelUsage:
    now, then = total.usage, before.usage
    return ModelUsage(
        Usage(
            max(0, now.input_tokens - then.input_tokens),
            max(0, now.output_tokens - then.output_tokens),
            max(0, now.cache_read_tokens - then.cache_read_tokens),
            max(0, now.cache_write_tokens - then.cache_write_tokens),
        ),
        max(0.0, round(total.cost_usd - before.cost_usd, 9)),
    )


PROJECT = "midwatch"
"""The project key of all sessions. The program's own, a path, differs between machines."""
_ENDED = frozenset({"end_turn", "stop_sequence", "max_tokens", "refusal"})
_LONGEST_NAME = 200
_CHECKED = frozenset(
    {
        *("type", "uuid", "parentUuid", "logicalParentUuid", "leafUuid", "sessionId"),
        *("timestamp", "requestId", "promptId", "id", "tool_use_id", "toolUseID"),
        *("signature", "data", "version", "gitBranch", "cwd", "role", "model"),
    }
)
"""Fields of a transcript that must stay unchanged: ids, signatures, encoded images."""


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
    if not name or len(name) > _LONGEST_NAME:
        raise ValueError(f"a key of 1 to {_LONGEST_NAME} characters is needed")
    return name


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of a transcript file; lines that are incomplete are left out."""
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry


class Mirror:
    """The session store that the Agent SDK gets: it appends, and loads nothing.

    Secrets are removed from what is appended; the program's own file on this disk is not changed.

    The SDK would load a transcript into a temporary folder, which a crash leaves behind and the next run
    does not find. `restore` puts transcripts in place instead.
    """

    def __init__(self, store: Transcripts, redactor: Redactor) -> None:
        self._store = store
        self._redactor = redactor

    async def append(self, key: Any, entries: list[Any]) -> None:
        clean = [_without_secrets(entry, self._redactor) for entry in entries]
        await self._store.append({**key, "project_key": PROJECT}, clean)

    async def load(self, key: Any) -> None:
        return None


def _without_secrets(value: Any, redactor: Redactor) -> Any:
    """Return the value with its texts redacted, except those that the program or the API checks."""
    if isinstance(value, str):
        return redactor.text(value)
    if isinstance(value, list):
        return [_without_secrets(item, redactor) for item in value]
    if isinstance(value, dict):
        return {
            name: item if name in _CHECKED else _without_secrets(item, redactor)
            for name, item in value.items()
        }
    return value


async def restore(store: Transcripts | None, conversation: str, main: Path) -> bool:
    """Write the transcript of a conversation to the file `main`, and those of its subagents beside it.

    Return whether there was one. A file that exists is kept: it is newer than the store.
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
    """What a transcript shows of a prompt.

    Attributes:
        state: "unknown": the program never read it; "cut": the turn has begun; "ended": it has ended.
        text: The answer so far.
    """

    state: TurnState
    text: str = ""


def turn_outcome(entries: Iterable[Mapping[str, Any]], uuid: str) -> TurnOutcome:
    """Return how far the turn of the prompt with this uuid came."""
    outcome = TurnOutcome("unknown")
    for entry in entries:
        if entry.get("isSidechain"):
            continue
        if entry.get("uuid") == uuid and entry.get("type") == "user":
            outcome = TurnOutcome("cut")
        elif outcome.state != "unknown" and entry.get("type") in ("assistant", "user"):
            outcome = _after(entry, outcome)
    return outcome


def _after(entry: Mapping[str, Any], outcome: TurnOutcome) -> TurnOutcome:
    message = entry.get("message")
    if entry["type"] == "user" or not isinstance(message, Mapping):
        return TurnOutcome("cut", outcome.text)
    if entry.get("isApiErrorMessage"):  # written by the program about a failure
        return TurnOutcome("cut", outcome.text)
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    text = "\n".join(b["text"] for b in blocks if b.get("type") == "text")
    ended = message.get("stop_reason") in _ENDED
    return TurnOutcome("ended" if ended else "cut", text or outcome.text)


def spent_before(entries: Iterable[Mapping[str, Any]]) -> dict[str, ModelUsage]:
    """Return the usage that the program starts to count from when it resumes this transcript."""
    spent: dict[str, ModelUsage] = {}
    for entry in entries:
        if entry.get("type") == "cost-state":
            spent = spend_by_model(entry.get("modelUsage") or {})
    return spent
