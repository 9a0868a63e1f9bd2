"""Logs: megabytes of a log scanned for errors, beside `grep -c`; error lines by shape, beside drain3; and how well both group.

One side reads a file from the page cache. The mixed log has an error in a hundred lines, as a log has on an ordinary day; in a storm every
line is one, with other numbers, with another identifier (also in the format of containers, and in JSON as structured loggers write it, alone,
in Docker's JSON, and with a stack trace), or, in the worst case, with another word. Fifty lines are written a second. The templates of the
lines that are grouped are errors that a person would take for different ones.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import UUID

from midwatch.redaction import Redactor
from midwatch.subjects.logs.error_shapes import Shapes
from midwatch.subjects.logs.levels import said
from midwatch.subjects.logs.rotation import read_files
from midwatch.subjects.logs.scanner import Scanner
from midwatch.subjects.logs.source_reading import Budget

from ._meter import Meter, command_cost
from .report import Row, against_bound, against_floor, compared, sized, turns

MEGABYTES = sized(100, 10)
GROUPED = sized(30_000, 3_000)  # lines of errors that are grouped
SPEED = 50.0
"""Megabytes a second that one core is to read."""
_START = (
    "2026-05-03 {:02}:{:02}:{:02}.{:03} {} [http-{}] com.shop.orders.OrderService - "
)
_TEMPLATES: tuple[Callable[[random.Random], str], ...] = (
    lambda r: f"order {r.randrange(10**6)} cannot be stored: no space left on device",
    lambda r: f"connection to {_host(r)} refused after {r.randrange(5000)} ms",
    lambda r: f"connection to {_host(r)} timed out after {r.randrange(5000)} ms",
    lambda r: f"login of {_user(r)} was refused: the password is wrong",
    lambda r: f"login of {_user(r)} was refused: the account is locked",
    lambda r: "cannot open the config file",
    lambda r: "cannot open the socket file",
    lambda r: f"user={_user(r)} path=/api/{_user(r)} status=500 took={r.randrange(900)}ms",
    lambda r: f"deadlock detected between {r.randrange(99)} and {r.randrange(99)}",
    lambda r: f'duplicate key "{_user(r)}" in table customers',
    lambda r: f"request {r.getrandbits(64):016x} of tenant {_user(r)} failed with code {r.randrange(600)}",
    lambda r: "cache is cold",
    lambda r: f"payment {r.randrange(10**6)} was declined by the bank {_user(r)}",
)


def _host(r: random.Random) -> str:
    return f"{r.choice(('db', 'cache', 'mail', 'search'))}-{r.randrange(20)}.shop.internal:{r.randrange(1000, 9999)}"


def _user(r: random.Random) -> str:
    return "".join(r.choices("abcdefghijklmnopqrst", k=7))


def _line(r: random.Random, number: int, level: str, message: str) -> str:
    """Return a line of a log that has fifty a second."""
    second, part = divmod(number % 4_320_000, 50)
    clock = second // 3600, second // 60 % 60, second % 60, part * 20
    return f"{_START.format(*clock, level, r.randrange(64))}{message}\n"


def _logs(folder: Path) -> dict[str, Path]:
    """Write the logs that are read."""
    r = random.Random(7)
    paid = [f"order {n} of {_user(r)} is paid" for n in range(10_000)]

    def mixed(number: int) -> str:
        if r.randrange(100):
            return _line(r, number, "INFO", paid[number % len(paid)])
        return _line(r, number, "ERROR", r.choice(_TEMPLATES)(r))

    def storm(number: int) -> str:
        text = f"order {r.randrange(10**6)} cannot be stored"
        return _line(r, number, "ERROR", text)

    def ids(number: int) -> str:
        text = f"request {UUID(int=r.getrandbits(128))} cannot be stored"
        return _line(r, number, "ERROR", text)

    def container(number: int) -> str:
        stamp = f"2026-05-03T12:00:00.{number % 10**9:09}Z"
        return f"{stamp} stderr F {ids(number)}"

    def structured(number: int) -> str:
        """Write as zap, pino and structlog do, by turns of a thousand lines."""
        id, order = str(UUID(int=r.getrandbits(128))), r.randrange(10**6)
        client = {"address": f"10.0.0.{r.randrange(256)}", "port": r.randrange(65_536)}
        at = f"2026-05-03T12:00:{number % 60:02}Z"
        made: tuple[dict[str, object], ...] = (
            {
                **{"level": "error", "time": at, "caller": "orders/service.go:112"},
                **{"msg": "order cannot be stored", "request_id": id, "order": order},
                **{"trace_id": f"{r.getrandbits(128):032x}", "error": "no space"},
            },
            {
                **{"level": 50, "time": at, "pid": 12, "hostname": "api-7d9f8b6c5"},
                **{"req": {"id": id, "client": client}, "msg": f"order {order} failed"},
            },
            {
                **{"event": f'request "{id}" failed', "request_id": id},
                **{"took": r.random(), "level": "error", "timestamp": at},
            },
        )
        return json.dumps(made[number // 1000 % 3], separators=(",", ":")) + "\n"

    def docker(number: int) -> str:
        entry = {
            "log": structured(number),
            "stream": "stderr",
            "time": "2026-05-03T12:00:00Z",
        }
        return json.dumps(entry, separators=(",", ":")) + "\n"

    def traces(number: int) -> str:
        """Write as encoders of Java do; the level stands after the stack trace."""
        frames = (
            f"\n\tat com.shop.orders.Order{n}.save(Order{n}.java:{n})"
            for n in range(80)
        )
        entry = {
            "@timestamp": "2026-05-03T12:00:00Z",
            "trace_id": f"{r.getrandbits(128):032x}",
            "stack_trace": f"java.lang.IllegalStateException: no stock{''.join(frames)}",
            "level": "ERROR",
            "message": f"order {number} cannot be stored",
        }
        return json.dumps(entry, separators=(",", ":")) + "\n"

    def worst(number: int) -> str:
        return _line(r, number, "ERROR", _TEMPLATES[3](r))

    found = {}
    for make, megabytes in (
        (mixed, MEGABYTES),
        (storm, MEGABYTES // 4),
        (ids, MEGABYTES // 10),
        (container, MEGABYTES // 10),
        (structured, MEGABYTES // 10),
        (docker, MEGABYTES // 10),
        (traces, MEGABYTES // 10),
        (worst, MEGABYTES // 10),
    ):
        found[make.__name__] = file = folder / f"{make.__name__}.log"
        with file.open("w") as log:
            for number in itertools.count():
                log.write(make(number))
                if not number % 1000 and log.tell() >= megabytes * 1_000_000:
                    break
    return found


def _scan(file: Path) -> Scanner:
    """Read a whole file as an observation does."""
    scanner = Scanner(Shapes(None, "", 160, Redactor().text, time.time()))
    budget = Budget(time.monotonic() + 600, 10**12)
    place = [[str(file), file.stat().st_ino, 0, "0:e3b0c44298fc1c14", 0, 0.0, 0]]
    reading = read_files(
        [str(file)], None, place, time.time(), 0.0, budget, scanner.feed
    )
    if reading.behind or reading.problems or not scanner.errors:
        raise RuntimeError(f"not all of {file} was read: {reading}")
    return scanner


async def run() -> Sequence[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, file in _logs(Path(folder)).items():
            megabytes = file.stat().st_size / 1e6

            async def ours(file: Path = file) -> object:
                with Meter() as meter:
                    _scan(file)
                return meter.cost

            async def grep(file: Path = file) -> object:
                pattern = "error|fatal|panic|crit|emerg|alert|severe|exception"
                return await command_cost(
                    "grep", "-ciE", pattern, str(file), cwd=file.parent
                )

            samples = await turns({"ours": ours, "grep -ciE": grep}, 3)  # type: ignore[dict-item]
            title = f"logs: a megabyte, {name}"
            rows += compared(title, samples, {}, each=megabytes)
            each = samples["ours"].processor / megabytes * 1000
            bound = 1000 / SPEED
            rows.append(against_bound(title, each, bound, "ms", measure="processor"))
    return [*rows, *await _grouped()]


# ------------------------------------------------------------------ grouping


async def _grouped() -> list[Row]:
    """Return what it costs to find the shape of an error line, and the share of lines in a wrong group."""
    r = random.Random(11)
    chosen = [r.randrange(len(_TEMPLATES)) for _ in range(GROUPED)]
    lines = [
        _line(r, number, "ERROR", _TEMPLATES[one](r)).rstrip()
        for number, one in enumerate(chosen)
    ]
    messages = [said(line).message for line in lines]
    found: dict[str, list[int]] = {}

    async def ours() -> object:
        with Meter() as meter:
            found["ours"] = _by_shape(messages)
        return meter.cost

    async def drain() -> object:
        with Meter() as meter:
            found["drain3"] = _by_drain(messages)
        return meter.cost

    samples = await turns({"ours": ours, "drain3": drain}, 3)  # type: ignore[dict-item]
    rows = compared("logs: the shapes of 1,000 lines", samples, {}, each=GROUPED / 1000)
    wrong = {name: 100 * _wrong(groups, chosen) for name, groups in found.items()}
    number = {name: len(set(groups)) for name, groups in found.items()}
    return [
        *rows,
        against_floor(
            "logs: lines in a wrong group",
            wrong["ours"],
            max(wrong["drain3"], 0.01),
            1.0,
            "%",
            against="drain3",
        ),
        against_floor(
            f"logs: groups of {len(_TEMPLATES)} templates",
            number["ours"],
            number["drain3"],
            None,
            "",
            against="drain3",
        ),
    ]


def _by_shape(messages: Iterable[str]) -> list[int]:
    from midwatch.subjects.logs.levels import Level

    shapes = Shapes(None, "", 160, Redactor().text, time.time())
    found = [shapes.find(Level.ERROR, message) for message in messages]
    groups = []
    for shape in found:
        while shape.wider is not None:
            shape = shape.wider
        groups.append(id(shape))
    return groups


def _by_drain(messages: Iterable[str]) -> list[int]:
    """Group with drain3 as it is by default, in memory."""
    from drain3.drain import Drain

    drain = Drain()
    return [drain.add_log_message(one)[0].cluster_id for one in messages]


def _wrong(groups: Sequence[int], truth: Sequence[int]) -> float:
    """Return the share of lines whose group is not exactly that of their template."""
    by_group: dict[int, set[int]] = defaultdict(set)
    sizes: dict[int, int] = defaultdict(int)
    per_truth: dict[int, set[int]] = defaultdict(set)
    for group, one in zip(groups, truth, strict=True):
        by_group[group].add(one)
        per_truth[one].add(group)
        sizes[group] += 1
    right = sum(
        sizes[group]
        for group, ones in by_group.items()
        if len(ones) == 1 and len(per_truth[next(iter(ones))]) == 1
    )
    return 1 - right / len(truth)
