"""Redaction: megabytes of logs, with secrets in no line, in four of ten and in every one; short texts; and an event of the outbox.

"Linear" compares a text that is four times as long: the seconds a byte must not grow. All figures are processor time.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from midwatch.redaction import Redactor
from midwatch.session.events import Message
from midwatch.session.log import EventLog
from midwatch.text import clean

from .report import Row, against_bound, against_floor, paired

SIZE = 1_000_000
PLAIN = (
    "2026-05-03 12:00:01.123 UTC [4242] LOG:  checkpoint complete: wrote 4321 buffers (26.4%); 0 WAL file(s) added\n"
    + '10.0.0.7 - - [03/May/2026:12:00:01 +0000] "GET /api/orders/42 HTTP/1.1" 200 512 "-" "curl/8.1"\n'
    * 3
)
WORDS = PLAIN + (
    '2026-05-03 12:00:01.123 UTC [4242] FATAL:  password authentication failed for user "bob"\n'
    'duplicate key value violates unique constraint "users_pkey"\n'
)
SECRETS = WORDS + (
    "host=db password=hunter2 user=x\n"
    '{"a":{"token":"xyz"},"b":1}\n'
    "connecting to postgres://bob:hunter2@db:5432/x\n"
    "Authorization: Bearer abc\n"
)
_BEFORE = (
    "2026-05-03 12:00:01.123 UTC [4242] app[web-1] request id=0001eef7 user=bob42 "
)
EVERY = "".join(
    f"{_BEFORE}{said}\n"
    for said in (
        "password=hunter2 status=ok in 12 ms",
        "connecting to postgres://bob:hunter2@db:5432/orders failed",
        "Authorization: Bearer abcdef123456 sent to upstream",
        '{"token": "xyz12345", "retry": 3}',
        "api_key=Zx81kfOo20 rejected by gateway",
    )
)
TEXTS = (  # milliseconds a megabyte at most: 30 and 10 MB/s
    ("redaction: no secrets", PLAIN, 33.0),
    ("redaction: words that name secrets", WORDS, 33.0),
    ("redaction: secrets", SECRETS, 100.0),
    ("redaction: secrets in every line", EVERY, 100.0),
)
SAID = "The tests pass now. I changed `total()` so that it reads each row once; see src/midwatch/model.py:42. "
SHORT, EVENTS = 2000, 1000


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


async def run() -> Sequence[Row]:
    redactor = Redactor(["a-known-secret"])
    rows = []
    for name, lines, at_most in TEXTS:
        text = lines * (SIZE // len(lines))
        short = text[: SIZE // 4]

        async def once(text: str = text) -> float:
            return _seconds(lambda: redactor.text(clean(text, longest=None)))

        async def four_times(short: str = short) -> float:
            return 4 * _seconds(lambda: redactor.text(clean(short, longest=None)))

        whole, parts = await paired(once, four_times, 5)
        rows.append(against_bound(name, whole * 1000, at_most, "ms"))
        rows.append(against_floor(f"{name}, linear", whole * 1000, parts * 1000, 1.5))
    return [*rows, await _short(redactor), *await _events(redactor)]


async def _short(redactor: Redactor) -> Row:
    """Return the row of a line without secrets, as those of a log are."""
    line = PLAIN.partition("\n")[0]

    async def lines() -> float:
        return _seconds(lambda: [redactor.text(line) for _ in range(SHORT)])

    taken, _ = await paired(lines, lines, 5)
    return against_bound("redaction: one line", taken / SHORT * 1e6, 10, "µs")


async def _events(redactor: Redactor) -> list[Row]:
    """Return the rows of an event in the outbox, and of its JSON with one write."""
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder, "outbox.jsonl"), redactor)
        bare = os.open(Path(folder, "bare.jsonl"), os.O_WRONLY | os.O_CREAT)
        event = {"type": "message", "seq": 1, "at": "2026-05-03T12:00:01Z"}

        def append() -> None:
            for _ in range(EVENTS):
                log.append(Message(text=SAID))

        def write() -> None:
            for _ in range(EVENTS):
                os.write(bare, json.dumps({**event, "text": SAID}).encode() + b"\n")

        async def ours() -> float:
            return _seconds(append)

        async def floor() -> float:
            return _seconds(write)

        taken, least = await paired(ours, floor, 5)
        log.close()
        os.close(bare)
    name, each = "outbox: append one event", 1e6 / EVENTS
    return [
        against_bound(name, taken * each, 30, "µs"),
        against_floor(
            f"{name} / JSON and write", taken * each, least * each, 8.0, "µs"
        ),
    ]
