"""Transcripts on SQL: the conformance suite of the Agent SDK, and more."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from claude_agent_sdk.testing import run_session_store_conformance

from midwatch.errors import StoreRejected
from midwatch.store.sessions import SqlTranscripts
from midwatch.store.sql import SqlStore, open_store

KEY = {"project_key": "midwatch", "session_id": "one"}


@pytest.fixture
async def shared_store(shared_database: str) -> AsyncIterator[SqlStore]:
    opened = await open_store(shared_database)
    yield opened
    await opened.close()


class Isolated(SqlTranscripts):
    """Return one database for all contracts: each uses its own projects."""

    _numbers = itertools.count()

    def __init__(self, store: SqlStore) -> None:
        super().__init__(store.transactions)
        self._prefix = f"{next(self._numbers)}/"

    def _own(self, key: Any) -> Any:
        return {**key, "project_key": self._prefix + key["project_key"]}

    async def append(self, key: Any, entries: list[Any]) -> None:
        await super().append(self._own(key), entries)

    async def load(self, key: Any) -> list[Any] | None:
        return await super().load(self._own(key))

    async def delete(self, key: Any) -> None:
        await super().delete(self._own(key))

    async def list_subkeys(self, key: Any) -> list[str]:
        return await super().list_subkeys(self._own(key))

    async def list_sessions(self, project_key: str) -> list[Any]:
        return await super().list_sessions(self._prefix + project_key)


async def test_the_conformance_suite_of_the_agent_sdk(shared_store: SqlStore) -> None:
    await run_session_store_conformance(lambda: Isolated(shared_store))


async def test_an_entry_is_kept_once_and_as_it_was(shared_store: SqlStore) -> None:
    """The program repeats entries when it resumes. Their order and number are kept."""
    transcripts = SqlTranscripts(shared_store.transactions)
    entry = {"uuid": "a", "z": 1.50, "a": {"y": [1, None, True], "b": "é"}}
    await transcripts.append(KEY, [entry, {"type": "mode"}, entry])
    await transcripts.append(KEY, [entry, {"uuid": "b"}, {"type": "mode"}])
    await transcripts.append({**KEY, "subpath": "agent"}, [entry])
    loaded = await transcripts.load(KEY)
    assert loaded == [entry, {"type": "mode"}, {"uuid": "b"}, {"type": "mode"}]
    assert list(loaded[0]) == ["uuid", "z", "a"]


async def test_text_that_no_database_holds(shared_store: SqlStore) -> None:
    transcripts = SqlTranscripts(shared_store.transactions)
    hostile = {"uuid": "x\0", "text": "\0 \ud800 \\u0000", "n": float("nan")}
    await transcripts.append(KEY, [hostile, hostile])
    expected = [{"uuid": "x�", "text": "� � \\u0000", "n": "nan"}]
    assert await transcripts.load(KEY) == expected
    with pytest.raises(StoreRejected, match="too long"):
        await transcripts.append({**KEY, "subpath": "é" * 500}, [{}])


async def test_a_batch_that_comes_again_is_kept_once(shared_store: SqlStore) -> None:
    """After a lost acknowledgement the Agent SDK repeats a batch; some of its entries have no uuid."""
    transcripts = SqlTranscripts(shared_store.transactions)
    key = {"project_key": "midwatch", "session_id": "again"}
    latch, prompt = {"type": "latch", "on": True}, {
        "type": "last-prompt",
        "text": "é\n",
    }
    said = {"type": "assistant", "uuid": "u1"}
    first, second = [latch, said, prompt], [latch]
    for batch in (first, first, second, second, first[2:], second, second):
        await transcripts.append(key, batch)
    assert await transcripts.load(key) == [*first, latch, prompt, latch]
    await transcripts.append({**key, "subpath": "sub"}, second)
    assert await transcripts.load({**key, "subpath": "sub"}) == second
