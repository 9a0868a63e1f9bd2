"""Ten megabytes of text from outside are cleaned, redacted, collapsed and shortened beside the event loop, never on it.

The thread of the loop is watched: no function that handles text may begin there with a large one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from midwatch.lifecycle import LARGE_TEXT
from midwatch.redaction import Redactor
from midwatch.redaction.hints import windows
from midwatch.subjects.tools import Answer
from midwatch.text import clean

from .test_context import gather, gatherer, source

SIZE = 10_000_000
LINE = (
    "2026-05-03 12:00:01.123 UTC [4242] LOG:  checkpoint complete: wrote 4321 buffers\n"
)
SECRET = (
    "2026-05-03 12:00:01.123 UTC [4242] app: connects with password=hunter2 to db1\n"
)
TEXTS = {
    "plain": LINE * (SIZE // len(LINE)),
    "secrets": (LINE * 50 + SECRET) * (SIZE // len(LINE * 50 + SECRET)),
    "one line": '{"n": 1, "url": "http://db:9090/x"}, ' * (SIZE // 37),
}


@contextlib.contextmanager
def large_texts_of_this_thread() -> Iterator[list[str]]:
    """Yield the functions of text and redaction that were called in this thread with a large text."""
    found: list[str] = []

    def called(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        handles = ("/midwatch/text.py", "/midwatch/log_shapes.py", "/redaction/")
        if event == "call" and any(one in code.co_filename for one in handles):
            values = frame.f_locals.values()
            if any(type(one) is str and len(one) > LARGE_TEXT for one in values):
                found.append(f"{code.co_filename}: {code.co_name}")

    sys.setprofile(called)
    try:
        yield found
    finally:
        sys.setprofile(None)


def test_the_watch_sees_a_large_text_of_its_thread() -> None:
    with large_texts_of_this_thread() as found:
        clean("\n" * (LARGE_TEXT + 1))
    assert found


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", TEXTS)
async def test_large_evidence_is_handled_beside_the_loop(name: str, log: bool) -> None:
    with large_texts_of_this_thread() as found:
        context = await gather([source("Log", TEXTS[name], log=log)], timeout=60)
    assert not found
    evidence = next(one for one in context.evidence if one.title == "Log")
    assert evidence.available and len(evidence.text) > 50
    assert "hunter2" not in evidence.text


async def test_a_large_answer_of_a_tool_is_handled_beside_the_loop() -> None:
    with large_texts_of_this_thread() as found:
        answer = Answer("show log", TEXTS["secrets"])
        piece = await gatherer([]).answered("log", "orders-db", answer, ok=True)
    assert not found
    assert "hunter2" not in piece.text and piece.text.count("[redacted:") > 1000


@pytest.mark.parametrize("name", TEXTS)
def test_a_large_text_is_searched_in_parts_without_a_cut_through_a_secret(
    name: str,
) -> None:
    """Python's engine holds the lock of the interpreter while it searches, so each search has to be short."""
    text = TEXTS[name]
    parts = [*windows(text)]
    assert "".join(text[start:end] for start, end in parts) == text
    assert max(end - start for start, end in parts) <= 100_000
    hidden = "password=[redacted:password]"
    assert Redactor().text(text) == text.replace("password=hunter2", hidden)
