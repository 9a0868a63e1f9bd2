"""Redaction of a megabyte of logs: without secrets, with words that name some, and with secrets in four lines of ten.

"Linear" compares a text that is four times as long: the seconds a byte must not grow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from midwatch.redaction import Redactor

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
TEXTS = (  # milliseconds a megabyte at most
    ("redaction: no secrets", PLAIN, 90.0),
    ("redaction: words that name secrets", WORDS, 180.0),
    ("redaction: secrets", SECRETS, 500.0),
)


async def _seconds(redactor: Redactor, text: str) -> float:
    start = time.perf_counter()
    redactor.text(text)
    return time.perf_counter() - start


async def run() -> Sequence[Row]:
    redactor = Redactor(["a-known-secret"])
    rows = []
    for name, lines, at_most in TEXTS:
        text = lines * (SIZE // len(lines))
        short = text[: SIZE // 4]

        async def once(text: str = text) -> float:
            return await _seconds(redactor, text)

        async def four_times(short: str = short) -> float:
            return sum([await _seconds(redactor, short) for _ in range(4)])

        whole, parts = await paired(once, four_times, 5)
        rows.append(against_bound(name, whole * 1000, at_most, "ms"))
        rows.append(against_floor(f"{name}, linear", whole * 1000, parts * 1000, 1.5))
    return rows
