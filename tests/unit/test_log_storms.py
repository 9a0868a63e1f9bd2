"""Many lines that are counted in one step count as they do line by line: in storms of plain lines, of JSON, and of containers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.subjects.logs.error_shapes import words_of
from midwatch.subjects.logs.framing import unwrap, whole_texts
from midwatch.subjects.logs.json_lines import ALONE, HEAD, LEVELS, JsonLines
from midwatch.subjects.logs.levels import Level, said, suspect
from midwatch.subjects.logs.scanner import Scanner
from tests.log_lines import WRAPPERS, counts, shapes

MESSAGES = (
    "order {} cannot be stored",
    "login of {} was refused: the password is wrong",
    "login of {} was refused: the account is locked",
    "[http-{}] request {} of {} failed",
    "values {}, {} and {} differ",
    "user={} is 'unknown' {}",
    "x{}y (cause {}) {}",
)
VALUES: dict[str, Callable[[random.Random], str]] = {
    "letters": lambda r: "".join(r.choices("qrstuvwx", k=7)),
    "hex": lambda r: f"{r.getrandbits(r.randrange(4, 80)):x}",
    "number": lambda r: str(r.getrandbits(r.randrange(1, 40))),
    "pairs": lambda r: f"{r.getrandbits(8):02x}-{r.getrandbits(8):02x}",
    "uuid": lambda r: str(UUID(int=r.getrandbits(128))),
}
ODD = (
    *("db-7.shop:5432", "deadbeef", "a1b2", "abcdefab-cdef-abcd-abcd-abcdefabcdef"),
    *("eve,", "#,", "1,", "a=b", "x=1", "'x'", '"y"', "it's", "wörd", "7é", "*", "-"),
    *(
        "\x1f",
        "a\x0bb",
        "\r",
        "q" * 120,
        "7" * 70,
        "f" * 45,
        "a1b2c3d4" * 9,
        "INFO",
        "#",
    ),
)


@pytest.mark.parametrize("kind", VALUES)
def test_lines_that_are_counted_in_one_step_are_those_of_the_usual_way(
    kind: str,
) -> None:
    """A storm, and what looks alike within it, counts as it does line by line."""
    for seed, message in enumerate(MESSAGES):
        r, slow = random.Random(seed), Scanner(shapes())
        fast = {form: Scanner(shapes()) for form in WRAPPERS}
        for usual in (True, False):
            text = ""
            for number in range(250):
                words = [VALUES[kind](r) for _ in range(3)]
                if not usual and number % 3 == 0:
                    words[0] = ODD[number // 3 % len(ODD)]
                level = "ERROR" if number % 97 else "INFO"
                head = f"2026-05-03 12:00:0{number % 7} {level}"
                text += f"{head} {message.format(*words)}\n"
            lines = text.split("\n")[:-1]
            for line in lines:  # each is looked at by itself
                slow.feed(f"{line}\n".encode(), "app.log")
            for form, wrap in WRAPPERS.items():
                data = "".join(map(wrap, lines)).encode()
                fast[form].feed(data, "app.log", form)
                assert fast[form].lines == slow.lines, (message, form)
                assert counts(fast[form]) == counts(slow), (message, form)


# ------------------------------------------------------------------ JSON

NAMES = (
    ("level", "id"),
    ("msg", "level", "error", "t\n"),
    ("event", "message", "log", "severity", "log.level", "SeverityNumber", "err", "é"),
)
SAID = (
    *("error", "ERROR", "fatal", "info", "weird", 50, 30, 17, 1.5, None, "", " error "),
    *(
        "order 7 failed",
        'cannot "open" "/x 1"',
        '"a\\\\" x=1 "b" \'"\' "c',
        "l1\nl2",
        "\\",
        "\ud800",
        "7é",
        "\x7f",
    ),
    *("Traceback (most recent call last):\n  File", "ERROR: x", True, "\x01E x"),
    *([], {}, {"message": "inner"}, {"level": "error", "a": [{"b": -0.5e-7}]}, [[1]]),
)
MANGLED = (
    *("", *'{ } ,} " \\ \\u12 \\x 01 NaN \0 \x01 é "msg":"twice", 1e5 .5 -'.split(" ")),
    *(' "level" :"error",', "\t", "  ", "{" * 9, "z" * 1990),
)


def json_line(members: list[tuple[str, Any]], spaces: bool, ascii: bool) -> str:
    comma, colon = (", ", ": ") if spaces else (",", ":")
    shown = [[json.dumps(x, ensure_ascii=ascii) for x in one] for one in members]
    return f"{{{comma.join(name + colon + value for name, value in shown)}}}"


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from(NAMES))
def test_a_line_of_json_is_reduced_to_what_it_says(
    given: st.DataObject, names: tuple[str, ...]
) -> None:
    """Whatever an object has, and where it is none: what it is reduced to is what reading it tells, or the line itself."""
    member = st.tuples(st.sampled_from(names), st.sampled_from(SAID))
    objects = st.tuples(st.lists(member, max_size=6), st.booleans(), st.booleans())
    texts = [json_line(*one) for one in given.draw(st.lists(objects, max_size=5))]
    texts.insert(0, json_line([(name, "x") for name in names], False, True))
    at, mangled = given.draw(st.integers(0, 200)), given.draw(st.sampled_from(MANGLED))
    texts += [
        texts[-1][:at] + mangled + texts[-1][at:],
        texts[-1][:at],
        texts[-1] + "\r",
    ]
    data = "".join(f"{one}\n" for one in texts).encode("utf-8", "surrogatepass")
    reduced = JsonLines(suspect().search, 2000).reduced(data, 0, len(data))
    assert reduced is not None
    both = zip(data.split(b"\n"), reduced.split(b"\n"), strict=True)
    for line, found in both:
        told = said(line[:2000].decode("utf-8", "replace").rstrip("\r"))
        if found in (ALONE, line):
            continue
        if level := LEVELS.get(found[:HEAD]):
            words = words_of(found[HEAD:].decode())
            assert (told.level, words_of(told.message)) == (level, words), line
            assert suspect().search(line) is not None
        else:
            assert found == b"" and told.level is not None, line
            assert told.level < Level.ERROR, line


R = random.Random(5)
LOGGERS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "zap": lambda id, text: {
        **{"level": "error", "ts": R.random() * 1e9, "caller": "a/b.go:12"},
        **{"msg": "order cannot be stored", "trace_id": id, "error": text},
    },
    "pino": lambda id, text: {
        **{"level": 50, "time": R.randrange(10**13), "pid": 1, "reqId": id, "msg": text}
    },
    "structlog": lambda id, text: {
        **{"event": text, "request_id": id, "level": "error", "n": [R.random(), None]}
    },
    "ECS": lambda id, text: {
        **{"@timestamp": "2026-05-03T12:00:00Z", "log": {"level": "ERROR", "x": id}},
        **{"message": text, "error": {"type": "E", "message": "no space"}},
    },
    "OpenTelemetry": lambda id, text: {
        **{"SeverityNumber": 17, "Body": text, "Attributes": {"http": {"a": [id]}}}
    },
    "Python": lambda id, text: {
        **{
            "levelname": "ERROR",
            "message": f'"{text}"',
            "id": id,
            "exc_info": "a\nb\tc",
        }
    },
}


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_storm_of_json_counts_in_one_step_as_line_by_line(logger: str) -> None:
    """Identifiers, other orders and further errors within it make no difference; nearly all lines are read in one step."""
    r, slow = random.Random(7), Scanner(shapes())
    fast = {form: Scanner(shapes()) for form in WRAPPERS}
    for message in MESSAGES[:3]:
        lines = []
        for number in range(300):
            words = [VALUES["uuid" if number % 2 else "letters"](r) for _ in range(3)]
            made = LOGGERS[logger](VALUES["uuid"](r), message.format(*words))
            if number % 40 == 20:  # longer than what is read in one step
                made = {"stack": "at shop.Order\n" * 200, **made}
            members = [*made.items()]
            if number % 5 == 0:
                r.shuffle(members)
            lines.append(json_line(members, number % 3 == 0, number % 7 != 0))
            if number % 50 == 0:
                lines.append(r.choice(["ERROR x", lines[0][:90], "", '{"msg":"x"}']))
        for line in lines:
            slow.feed(f"{line}\n".encode(), "app.log")
        for form, wrap in WRAPPERS.items():
            data = "".join(map(wrap, lines)).encode()
            fast[form].feed(data, "app.log", form)
            assert fast[form].lines == slow.lines
            assert counts(fast[form]) == counts(slow), form
    data = "".join(f"{line}\n" for line in lines).encode()
    reduced = JsonLines(suspect().search, 2000).reduced(data, 0, len(data))
    assert reduced and reduced.count(b"\n\x01E ") > 250


@given(st.lists(st.text(), max_size=9))
def test_what_docker_wrote_is_decoded_at_once_as_line_by_line(texts: list[str]) -> None:
    data = "".join(WRAPPERS["docker"](one) for one in texts).encode("utf-8", "replace")
    found = whole_texts(data, "docker")
    if found is not None:
        lines = [unwrap(line, "docker").text for line in data.split(b"\n")[:-1]]
        assert [one.rstrip(b"\r") for one in found.split(b"\n")[:-1]] == lines
    storm = WRAPPERS["docker"]('{"msg":"a \\"\t\\\\<&>"}').encode() * 2
    assert whole_texts(storm, "docker") == b'{"msg":"a \\"\t\\\\<&>"}\n' * 2
