"""The pure parts of the kind `logs`: levels, shapes, records of several lines, containers' formats, and what counts say."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.model import Observation, Signal
from midwatch.redaction import Redactor
from midwatch.subjects.base import configure
from midwatch.subjects.logs.cut_json import cut_object
from midwatch.subjects.logs.error_shapes import Shapes
from midwatch.subjects.logs.framing import Format
from midwatch.subjects.logs.levels import Level, said, suspect
from midwatch.subjects.logs.line_times import line_time
from midwatch.subjects.logs.rules import Judge, Past, Verdict
from midwatch.subjects.logs.scanner import Scanner
from midwatch.subjects.logs.search import expression
from midwatch.subjects.logs.settings import INVARIANTS, LogsSettings
from midwatch.subjects.logs.source_reading import Reading
from tests.log_lines import WRAPPERS, counts, scanned, shapes

E, F, W, INFO = Level.ERROR, Level.FATAL, Level.WARNING, Level.INFO
LINES: list[tuple[str, Level | None, str]] = [
    (
        "2026-05-03 12:00:01.123 ERROR [main] c.s.Order - no stock",
        E,
        "[main] c.s.Order - no stock",
    ),
    ("2026-05-03 12:00:01,123 - shop.orders - ERROR - no stock", E, "no stock"),
    (
        "2026-05-03 12:00:01,123 - shop - INFO - ERROR of a peer",
        INFO,
        "ERROR of a peer",
    ),
    (
        "E0503 12:00:00.123456       1 reflector.go:127] no watch",
        E,
        "reflector.go:127] no watch",
    ),
    (
        "W0503 12:00:00.123456       1 reflector.go:127] error",
        W,
        "reflector.go:127] error",
    ),
    (
        "2026/05/03 12:00:00 [error] 31#31: *1 connect() failed",
        E,
        "31#31: *1 connect() failed",
    ),
    ("[Sun May 03 12:00:00 2026] [core:crit] [pid 12] no", F, "[pid 12] no"),
    ('level=error ts=2026 msg="cannot open" err="no file"', E, "cannot open: no file"),
    ('time="2026-05-03T12:00:00Z" level=warning msg="error"', W, "error"),
    ('{"level":"error","msg":"boom","err":"late"}', E, "boom: late"),
    ('{"level":50,"msg":"boom"}', E, "boom"),
    ('{"level":30,"msg":"an error of others"}', INFO, "an error of others"),
    ('{"SeverityNumber":17,"Body":{"stringValue":"b"}}', E, "b"),
    ('{"log.level":"ERROR","message":"m"}', E, "m"),
    ("<11>May  3 12:00:00 host app[12]: cannot write", E, "cannot write"),
    ("<14>May  3 12:00:00 host app[12]: no error here", INFO, "no error here"),
    ('<9>1 2026-05-03T12:00:00Z h app 12 ID [a b="c"] x', F, "x"),
    ("May  3 12:00:00 host sshd[12]: error: kex: closed", E, "kex: closed"),
    (
        "May  3 12:00:00 host kernel: Out of memory: Killed process 1",
        F,
        "Out of memory: Killed process 1",
    ),
    (
        'May  3 12:00:00 host app[1]: {"level":"info","msg":"ERROR of a peer"}',
        INFO,
        "ERROR of a peer",
    ),
    ('ERROR: {"level":"info","msg":"x"}', E, '{"level":"info","msg":"x"}'),
    (
        "panic: runtime error: index out of range",
        F,
        "runtime error: index out of range",
    ),
    ("ValueError: bad", E, "ValueError: bad"),
    ('10.0.0.7 - - [03/May/2026:12:00:01 +0000] "GET /errors HTTP/1.1" 200', None, ""),
    ("[2026-05-03 12:00:00] production.ERROR: SQLSTATE[HY000]", E, "SQLSTATE[HY000]"),
    ("2026-05-03T12:00:00Z 0 [ERROR] [MY-010119] Aborting", E, "[MY-010119] Aborting"),
    ("nginx: [emerg] bind() failed", F, "bind() failed"),
    ('{"level":1e999,"severity":"error","msg":"x"}', E, "x"),
    ('{"level":NaN,"severity":"²","lvl":50,"msg":"x"}', E, "x"),
]


@pytest.mark.parametrize(("line", "level", "message"), LINES)
def test_levels_are_read_from_usual_formats(
    line: str, level: Level | None, message: str
) -> None:
    found = said(line)
    assert found.level is level
    assert not message or found.message == message
    if level is not None and level >= Level.ERROR:  # else it would never be looked at
        assert suspect().search(line.encode()) is not None


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda b: b.decode("latin-1"))))
def test_no_line_breaks_the_reading(line: str) -> None:
    said(line)
    scanned(f"{line}\n2026 ERROR order 1 failed\n")


def test_an_object_that_is_cut_has_the_members_before() -> None:
    """Wherever it is cut: its members are those that it has, but for the last, of which the beginning is there."""
    whole = {
        **{
            "level": 50,
            "é": 'a "b"\\ \n\té\x7f',
            "at": -1.5e7,
            "none": None,
            "on": True,
        },
        **{
            "error": {"message": "no\tspace", "stack": "at x"},
            "list": [[1], {"a": "b"}],
        },
        **{"digits": "5012", "end": ""},
    }
    for spaced, ascii in ((None, True), ((",", ":"), False)):
        text = json.dumps(whole, separators=spaced, ensure_ascii=ascii)
        for at in range(1, len(text)):
            read = cut_object(text[:at])
            assert read is not None, text[:at]
            assert [*read] == [*whole][: len(read)] or "list" not in read
            for name, value in [*read.items()][:-1]:
                assert value == whole[name], text[:at]
            for name, value in [*read.items()][-1:]:
                if isinstance(value, dict):
                    value = [*value.values()]
                    assert all(map(str.startswith, ("no\tspace", "at x"), value))
                else:
                    assert value == whole[name] or whole[name].startswith(value)
    for wrong in (text, f"{text} ERROR x", "{", '{"a":01,', "{x", "{'a': 1"):
        assert (cut_object(wrong) is None) == (wrong != "{"), wrong


TRACE = '  File "x.py", line 3, in <module>\n    raise ValueError("bad")\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"2026 ERROR it failed\nTraceback (most recent call last):\n{TRACE}ValueError: bad\n",
            {"it failed": 1},
        ),
        (
            f"2026 INFO fine\nTraceback (most recent call last):\n{TRACE}ValueError: bad\n",
            {"ValueError: bad": 1},
        ),
        (
            "12:00:00 ERROR c.s.A - failed\njava.lang.IllegalStateException: no\n\tat a.B.c(B.java:1)\n"
            "Caused by: java.io.IOException: disk error\n\t... 2 more\n12:00:01 ERROR c.s.A - failed\n",
            {"c.s.A - failed": 2},
        ),
        (
            "panic: out of range\n\ngoroutine 1 [running]:\nmain.main()\n\t/x/error.go:5 +0x1d\n",
            {"out of range": 1},
        ),
    ],
)
def test_a_stack_trace_belongs_to_its_record(
    text: str, expected: dict[str, int]
) -> None:
    assert counts(scanned(text)) == expected


def test_a_trace_that_is_read_in_two_pieces_is_one_record() -> None:
    head = "2026 ERROR it failed\n"
    scanner = scanned(head)
    more = f"Traceback (most recent call last):\n{TRACE}ValueError: bad\n"
    scanner.feed((head + more).encode(), "app.log", "plain", len(head))
    assert counts(scanner) == {"it failed": 1} and scanner.lines == 5


@pytest.mark.parametrize("form", ["plain", "cri", "docker"])
def test_an_error_of_klog_is_one_whatever_it_says(form: Format) -> None:
    line = "E0503 12:00:00.123456       1 reflector.go:127] no watch"
    scanner = scanned(WRAPPERS[form](line), form)
    assert counts(scanner) == {"#] no watch": 1}


@pytest.mark.parametrize("form", ["plain", "cri", "docker"])
def test_an_error_of_pino_is_one_whatever_it_says(form: Format) -> None:
    line = '{"level":50,"time":1777809601250,"msg":"no watch"}'
    assert counts(scanned(WRAPPERS[form](line), form)) == {"no watch": 1}


def test_lines_of_containers_are_joined() -> None:
    stamp = "2026-05-03T12:00:00.1Z"
    cri = (
        f"{stamp} stderr P 2026 ERROR order 7 can\n{stamp} stdout F 2026 INFO fine\n"
        f"{stamp} stderr P not be stored, an er\n{stamp} stderr F ror\n{stamp} stderr F \tat error.java\n"
    )
    assert counts(scanned(cri, form="cri")) == {"order # cannot be stored, an error": 1}
    late = (  # the first part has no word of an error, and a line between has one
        f'{stamp} stderr P {{"msg":"late",\n{stamp} stdout F 2026 ERROR no stock\n'
        f'{stamp} stderr P "error":"none",\n{stamp} stderr F "level":"error"}}\n'
    )
    assert counts(scanned(late, form="cri")) == {"no stock": 1, "late: none": 1}
    docker = "".join(
        json.dumps({"log": log, "stream": "stderr", "time": stamp}) + "\n"
        for log in (
            'level=error msg="can',
            'not open"\n',
            '{"level":"error","msg":"no \\"x\\""}\n',
        )
    )
    assert counts(scanned(docker, form="docker")) == {"cannot open": 1, "no #": 1}


def test_words_that_differ_become_one_place_and_keep_a_name() -> None:
    found = shapes()
    for name in ("ann", "bob", "carl"):
        found.find(E, f"login of {name} from the office was refused")
    assert len(found) == 3
    first = next(iter(found))
    named = found.name(first, "api")
    wide = found.find(E, "login of dora from the office was refused")
    assert wide.text == "login of * from the office was refused" and len(found) == 1
    assert found.name(wide, "api") == named
    assert found.find(E, "login of eve from the office was refused") is wide
    other = found.find(E, "cannot open socket")
    assert other is not wide and found.find(E, "cannot open file") is not other


def test_secrets_are_in_no_shape_and_no_example() -> None:
    scanner = scanned("2026 ERROR cannot connect to postgres://bob:hunter2@db/x\n")
    [shape] = scanner.shapes
    assert "hunter2" not in json.dumps(shape.to_state())


# ------------------------------------------------------------------ what counts say


class Log:
    """A source that is read every 30 seconds, by a clock that the test moves."""

    def __init__(self, **settings: Any) -> None:
        beats = [{"name": "alive", "pattern": "^worker is alive", "within": "2m"}]
        given = {
            "name": "logs",
            "sources": [{"name": "api", "files": ["/x"], "heartbeats": beats}],
            "learn": 0,
            **settings,
        }
        self.settings = LogsSettings.model_validate(given)
        self.now = 1_000_000.0
        self.raw: Any = None

    def read(self, text: str = "", wait: float = 30.0, **found: Any) -> Verdict:
        """Read these lines after a while; `found` are fields of the reading."""
        self.now += wait
        source = self.settings.sources[0]
        past = Past.of(json.loads(json.dumps(self.raw)), self.now)
        known = Shapes(past.shapes, past.known, 50, Redactor().text, self.now)
        beats = {one.name: expression(one.pattern) for one in source.heartbeats}
        scanner = Scanner(known, beats)
        scanner.feed(text.encode(), "app.log")
        wanted = configure(INVARIANTS, self.settings.invariants, "")
        judge = Judge(self.settings, source, {i.id: i for i in wanted}, past, known)
        verdict = judge.verdict(Reading(self.now, **found), scanner)
        self.raw = past.to_state()
        return verdict

    def of(self, invariant: str, *reading: Any, **found: Any) -> list[Signal]:
        verdict = self.read(*reading, **found)
        return [one for one in verdict.signals if one.invariant == invariant]


def errors(count: int, text: str = "order {} cannot be stored") -> str:
    return "".join(f"2026 ERROR {text.format(n)}\n" for n in range(count))


UNKNOWN: list[dict[str, Any]] = [
    {"behind": 5},
    {"lost": "rotated away"},
    {"problems": ["it is gone"]},
    {"denied": "hidden"},
]


@pytest.mark.parametrize("found", UNKNOWN, ids=lambda one: next(iter(one)))
def test_unknown_is_never_clear(found: dict[str, Any]) -> None:
    log = Log()
    log.read("worker is alive\n")
    storm = log.read(errors(100) + "worker is alive\n")
    broken = {one.invariant for one in storm.signals if one.holds is False}
    assert broken == {"error_storm", "new_error"}
    log.read("", wait=7200)  # the heartbeat is due, the storm and its novelty are over
    log.raw["open"] = {
        one.invariant: [one.component] for one in storm.signals if one.holds is False
    }
    unknown = log.read("", **found)
    assert not any(one.holds for one in unknown.signals)
    assert {**unknown.unknown, **unknown.unsupported}.keys() == {
        i.id for i in INVARIANTS
    }
    beat = next(one for one in unknown.signals if one.invariant == "heartbeat")
    assert beat.holds is None
    clear = [log.read("worker is alive\n", wait) for wait in (600, 30)]
    assert not clear[0].unknown and not clear[1].unknown
    held = {one.invariant for each in clear for one in each.signals if one.holds}
    assert held == {i.id for i in INVARIANTS}
    gone = log.read("", wait=600)
    assert [one.holds for one in gone.signals if one.invariant == "heartbeat"] == [
        False
    ]


def test_a_storm_in_what_is_read_of_a_backlog_is_broken_at_once() -> None:
    log = Log()
    log.read()
    [storm] = log.of("error_storm", errors(2000), 3600, behind=1)
    assert storm.holds is False and storm.value == pytest.approx(2000 / 60)
    assert not log.of("error_storm", errors(10), behind=1)[0].holds
    log = Log()
    log.read()
    assert not log.of("error_storm", errors(500), 3600)  # 500 in an hour are no storm


def test_a_storm_of_shapes_is_bounded() -> None:
    words = [f"{a}{b}" for a in "abcdefgh" for b in "stuvwxyz"]
    text = "".join(errors(60, f"{w} {w[::-1]}{w}") for w in words)
    log = Log()
    log.read()
    verdict = log.read(text)
    storm = [one for one in verdict.signals if one.invariant == "error_storm"]
    assert len(storm) == 21 and storm[-1].component == "api: (other shapes)"
    assert "44 more shapes" in storm[-1].message and "error_storm" in verdict.unknown
    assert len(json.dumps(log.raw)) < 100_000
    names = {one.component for one in storm}
    assert {one.component for one in log.of("error_storm", text)} == names


AT = 1_777_809_601.0  # 2026-05-03T12:00:01Z


def stamp(at: float, text: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    return time.strftime(text, time.gmtime(at))


@pytest.mark.parametrize(
    ("line", "later"),
    [
        ("2026-05-03T12:00:01.250Z ERROR order of 2020-01-01 00:00:00 is late", 0.25),
        ("2026-05-03 14:00:01,5+02:00 x", 0.5),
        ("2026/05/03 12:00:01 UTC [error] x", 0),
        ("<11>2026-05-03T12:00:01Z host app[1]: x", 0),
        ('10.0.0.7 - - [03/May/2026:14:00:01 +0200] "GET / HTTP/1.1" 200', 0),
        ('{"msg":"due 2020-01-01 00:00:00","time":"2026-05-03T12:00:01Z"}', 0),
        ('{"level":50,"time":1777809601250,"msg":"x"}', 0.25),
        ('{"ts":1777809601.5,"msg":"x"}', 0.5),
        ("level=error ts=2026-05-03T12:00:01Z msg=x", 0),
        ("level=error ts=1777809601.5 msg=x", 0.5),
        ("order 1777809601 is late", None),
        ("2026-02-30T12:00:01Z x", None),
        ("", None),
    ],
)
def test_lines_have_times_of_usual_formats(line: str, later: float | None) -> None:
    assert line_time(line, AT) == (None if later is None else AT + later)


@pytest.mark.parametrize(
    "line",
    [
        "%b %d %H:%M:%S host app: x",
        "<11>%b %d %H:%M:%S host app: x",
        "E%m%d %H:%M:%S.000000 1 x.go:1] x",
        "[%a %b %d %H:%M:%S 2026] [core:error] x",
        "%Y-%m-%d %H:%M:%S,000 - shop - ERROR - x",
    ],
)
def test_a_time_without_a_zone_is_that_of_this_machine(line: str) -> None:
    assert line_time(time.strftime(line, time.localtime(AT)), AT + 86_400) == AT


def timed(start: float, end: float, count: int, text: str) -> str:
    """Lines that were written evenly from one time to another."""
    each = (end - start) / count
    return "".join(
        f"{stamp(start + n * each)} {text.format(n)}\n" for n in range(count)
    )


def judged(log: Log, text: str, wait: float) -> dict[str, Signal]:
    """Return what is broken after lines were read, but for the heartbeat."""
    signals = log.read(text, wait).signals
    broken = {one.invariant: one for one in signals if one.holds is False}
    broken.pop("heartbeat", None)
    return broken


@pytest.mark.parametrize("late", ["after a pause", "delivered late", "another zone"])
def test_a_backlog_counts_for_when_it_was_written(late: str) -> None:
    """An hour of lines is read at once: it is what it was while it was written, a storm in it is one."""
    log = Log(learn=86_400)
    log.now = AT
    usual = {"count": 100, "text": "INFO order {} is paid"}
    log.read()
    for _ in range(14):
        assert not judged(log, timed(log.now, log.now + 300, **usual), 300)
    wait = 30 if late == "delivered late" else 3600
    end = log.now + wait - (7200 if late == "another zone" else 0)
    start = end - 3600
    text = timed(start, end, 1200, "INFO order {} is paid")
    errors = timed(start, end, 100, "ERROR mail {} is late")
    assert not judged(log, "".join(sorted((text + errors).splitlines(True))), wait)
    assert not judged(log, "", 30)

    end = log.now + wait - (7200 if late == "another zone" else 0)
    start = end - 3600
    storm = timed(start + 600, start + 720, 3000, "ERROR order {} cannot be stored")
    both = timed(start, end, 1200, **{"text": usual["text"]}) + storm
    broken = judged(log, "".join(sorted(both.splitlines(True))), wait)
    found = broken["error_storm"]
    assert found.value == pytest.approx(600, rel=0.01) and "until" in found.facts
    assert ("log_rate" in broken) == (late != "delivered late")
    verdict = log.read("", 30)
    over = {one.invariant: one.holds for one in verdict.signals}
    assert over["error_storm"] is True and over["log_rate"] is True


def test_an_unknown_rate_opens_and_resolves_nothing() -> None:
    log = Log(rate_window=60, rate_minimum=500)
    for number in range(14):
        log.read("2026 INFO x\n" * (10 + number % 2), 60)
    assert log.of("log_rate", "2026 INFO x\n" * 300, 60)[0].holds is True
    for one in log.of("log_rate", "", 1, lost="rotated away"):
        assert one.holds is None and one.value is None, "no limit decides"


def test_only_after_learning_a_shape_is_new() -> None:
    log = Log(learn=3600, new_for=600)
    verdict = log.read(errors(1))
    assert verdict.learning and not verdict.signals[1:]
    late = errors(1, "cache {} is cold")
    assert not log.of(
        "new_error", late, 3700
    )  # it may have been written while learning
    assert not log.of("new_error", late)
    [new] = log.of("new_error", errors(1, "disk {} is on fire"))
    assert new.holds is False and new.component == "api: ERROR: disk # is on fire"
    assert [one.holds for one in log.of("new_error", "", 700)] == [True]
    assert not log.of("new_error", errors(1, "disk {} is on fire"), 7200)


def test_a_rate_jumps_against_its_own_past() -> None:
    log = Log(rate_window=60, rate_minimum=100)
    for number in range(14):
        quiet = log.of("log_rate", "2026 INFO x\n" * (90 + number % 5 * 5), 60)
    assert [one.holds for one in quiet] == [True, True]
    lines = log.of("log_rate", "2026 INFO x\n" * 900, 60)[0]
    assert lines.holds is False and 8 < (lines.value or 0) < 11
    assert lines.component == "api: lines" and "times as many as usual" in lines.message
    assert log.of("log_rate", "2026 INFO x\n" * 100, 60)[0].holds is True
    log = Log(rate_window=60, rate_minimum=100)
    for number in range(14):  # a rate that varies
        log.read("2026 INFO x\n" * (10 if number % 2 else 400), 60)
    assert log.of("log_rate", "2026 INFO x\n" * 1100, 60)[0].holds is True


def test_a_heartbeat_is_late_by_the_time_that_it_has() -> None:
    log = Log()
    log.read("worker is alive\n")
    assert log.of("heartbeat")[0].holds is True
    # Read after an hour, the line may be an hour old: its own time is not known.
    assert log.of("heartbeat", "worker is alive\n", 3600)[0].holds is None
    assert log.of("heartbeat", "", 60)[0].holds is None
    [late] = log.of("heartbeat", "", 120)
    assert late.holds is False and "it is due every 2m" in late.message


def test_the_state_of_others_begins_anew() -> None:
    for raw in (None, [], "x", {"began": "x"}, {"began": 1, "at": None}):
        assert Past.of(raw, 5.0).is_first
    assert Observation((), frozenset()).state == {}
