"""The output of a command: any bytes are a report or one line that says what is wrong, in bounded time."""

from __future__ import annotations

import json
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.errors import ObservationFailed
from midwatch.model import Key, Observation, Severity
from midwatch.monitor.rules import check
from midwatch.subjects.command import (
    LEFT_OUT,
    MAX_VIOLATIONS,
    VIOLATION,
    observation,
    parse,
)

ONE = {"invariant": "queue_depth", "component": "mail", "message": "12,000 wait"}


def written(**fields: object) -> str:
    return json.dumps({"violations": [{**ONE, **fields}]})


def observed(
    output: str | bytes, severity: Severity | None = None, **changes: object
) -> Observation:
    data = output.encode() if isinstance(output, str) else output
    invariant = replace(VIOLATION, **changes)  # type: ignore[arg-type]
    return observation(parse(data), invariant, severity)


def refused(output: str | bytes) -> str:
    with pytest.raises(ObservationFailed) as caught:
        observed(output)
    line = caught.value.one_line()
    assert "\n" not in line and len(line) < 500
    return line


# ------------------------------------------------------------------ encodings


@pytest.mark.parametrize(
    "output",
    [
        "\ufeff".encode() + written(component="bär").encode(),
        json.dumps(
            {"violations": [{**ONE, "component": "bär"}]}, ensure_ascii=False
        ).encode("utf-16"),
        written(component="bär").encode("utf-32"),
        written(component="b?r").encode().replace(b"?", b"\xe4"),  # in Latin-1
        b"\xef\xbb\xbf" + json.dumps({**ONE, "component": "bär"}).encode() + b"\r\n",
        b"\xef\xbb\xbf\n\xef\xbb\xbf"
        + json.dumps({**ONE, "component": "bär"}).encode(),
    ],
)
def test_marks_and_other_encodings_do_not_hide_the_report(output: bytes) -> None:
    assert [one.component for one in observed(output).signals] == ["bär"]


# ------------------------------------------------------------------ what is ambiguous, too large, too deep


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ('{"violations": [%s], "violations": []}' % json.dumps(ONE), "'violations'"),
        (written().replace("}", ', "message": "all is well"}', 1), "'message'"),
        (written(facts={"a": 1}).replace("1}", '1, "a": 2}'), "'a' is given twice"),
        (written(value=0).replace("0", "9" * 5000), "output"),
        (written(value=0).replace("0", "9" * 4000), "output"),
        (written(facts={"n": 0}).replace("0", "9" * 350), "facts.n"),
        (written(value=0).replace("0", "1e999"), "inf is not"),
        ('{"violations":' * 50_000, "output"),
        ("[" * 50_000 + "]" * 50_000, "output"),
        (written(facts={"a": [[]]}), "facts.a: a list is not"),
        (
            '{"violations": [' + ",".join(["{}"] * 300_000) + "]}",
            "invariant: is missing",
        ),
        ("{}\n" * 50_000, "line 1: {}"),
        ('{"%s": 1}' % ("x" * 900_000), "unknown field"),
        (written(invariant="subject_unobservable"), "Midwatch's own"),
        ("null", "null is not a group of fields"),
        ("[]", "a list is not a group of fields"),
        (written() + "\ndone", "line 2: done"),
        (b"\xff\xfe" + b"{\0\xd8", "is not utf-16"),
    ],
)
def test_what_cannot_be_believed_is_one_line(output: str | bytes, reason: str) -> None:
    began = time.process_time()
    tracemalloc.start()
    try:
        line = refused(output)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if reason != "unknown field":  # cut off behind so long a name
        assert reason in line
    assert time.process_time() - began < 20
    assert peak < 150_000_000


# ------------------------------------------------------------------ two violations of one key


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_violations_of_one_key_the_worse_counts(order: int) -> None:
    two = [
        {**ONE, "severity": "info", "message": "mild"},
        {**ONE, "severity": "critical", "message": "bad"},
    ][::order]
    for output in (
        json.dumps({"violations": two}),
        "\n".join(json.dumps(one) for one in two),
    ):
        [signal] = observed(output).signals
        assert (signal.severity, signal.message) == (Severity.CRITICAL, "bad")
        assert signal.facts == {"also_reported": "mild"}


def test_names_that_differ_in_what_is_not_shown_are_one_key() -> None:
    two = [{**ONE, "component": "a b"}, {**ONE, "component": "a\n\tb"}]
    assert len(observed(json.dumps({"violations": two})).signals) == 1


def test_a_blank_name_and_message_are_still_told() -> None:
    [signal] = observed(written(component=" ", message="")).signals
    assert signal.component == "' '"
    assert signal.message == "queue_depth is broken on ' '"


# ------------------------------------------------------------------ a storm


def test_in_a_storm_the_worst_are_tickets_and_nothing_resolves() -> None:
    many = [{**ONE, "component": f"host-{n}"} for n in range(MAX_VIOLATIONS + 500)]
    many[-1]["severity"] = "critical"
    storm = observed(json.dumps({"violations": many}))
    assert len(storm.signals) == MAX_VIOLATIONS + 1
    assert storm.signals[0].component == f"host-{MAX_VIOLATIONS + 499}"
    rest = storm.signals[-1]
    assert (rest.invariant, rest.value) == (LEFT_OUT, 500)
    assert rest.message.startswith("500 more violations")
    checked = check("q", {"violation": VIOLATION}, storm, {}, 0.0)
    for key in (
        Key("q", "queue_depth", f"host-{MAX_VIOLATIONS + 400}"),
        Key("q", "queue_depth", "gone"),
        Key("q", "other", "host-1"),
    ):
        assert not checked.known(key)
    # Afterwards everything is known again, also where only a part is covered.
    for calm in ('{"violations": []}', '{"violations": [], "covered": ["disk"]}'):
        after = check("q", {"violation": VIOLATION}, observed(calm), {}, 0.0)
        assert after.known(Key("q", LEFT_OUT, "report"))


def test_a_storm_that_covers_a_part_covers_what_was_not_left_out() -> None:
    many = [{**ONE, "component": f"host-{n}"} for n in range(MAX_VIOLATIONS + 1)]
    covered = ["queue_depth", "disk"]
    storm = observed(json.dumps({"violations": many, "covered": covered}))
    assert storm.covers("disk") and not storm.covers("queue_depth")


# ------------------------------------------------------------------ what is left out


def test_the_settings_leave_out_by_invariant_and_component() -> None:
    many = [
        {**ONE, "component": name, "invariant": invariant}
        for name in ("mail", "test-1", "test-2")
        for invariant in ("queue_depth", "age")
    ]
    ignore = ({"invariant": "queue_*", "component": "test-*"},)
    found = observed(json.dumps({"violations": many}), ignore=ignore)
    left = [(one.invariant, one.component) for one in found.signals]
    assert ("age", "test-1") in left and ("queue_depth", "mail") in left
    assert len(left) == 4
    assert found.ignored == {
        "violation": ("queue_depth on test-1", "queue_depth on test-2")
    }
    everything = observed(
        json.dumps({"violations": [{**ONE, "component": str(n)} for n in range(50)]}),
        ignore=({"invariant": "*"},),
    )
    assert everything.ignored["violation"][-1] == "and 30 more"


# ------------------------------------------------------------------ every way of not knowing

OPEN = [
    Key("q", "queue_depth", "mail"),
    Key("q", "age", "mail"),
    Key("q", "violation", "x"),
]


@pytest.mark.parametrize(
    ("output", "known"),
    [
        ('{"violations": []}', OPEN),
        ('{"violations": [], "covered": ["age"]}', [OPEN[1], OPEN[2]]),
        ('{"violations": [], "covered": []}', []),
        (written(), OPEN),
        (json.dumps({"violations": [ONE], "covered": []}), [OPEN[0]]),
    ],
)
def test_what_is_not_covered_is_unknown(output: str, known: list[Key]) -> None:
    found = observed(output)
    checked = check("q", {"violation": VIOLATION}, found, {}, 0.0)
    decided = [key for key in OPEN if key in checked.broken or checked.known(key)]
    assert decided == known
    if '"covered": []' in output:
        assert "covers nothing" in found.unavailable["violation"]


# ------------------------------------------------------------------ any output

texts = st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
almost = st.fixed_dictionaries(
    {
        "invariant": st.sampled_from(["a", "b-c", "", "a b"]) | values,
        "component": st.sampled_from(["a", " ", "ä"]) | values,
        "message": texts | values,
    },
    optional={
        "severity": st.sampled_from(["critical", "info", "bad"]) | values,
        "value": st.floats() | values,
        "facts": st.dictionaries(texts, values, max_size=3) | values,
        "other": values,
    },
)
reports = st.fixed_dictionaries(
    {"violations": st.lists(almost | values, max_size=4) | values},
    optional={"covered": st.lists(texts) | values, "evidence": values, "x": values},
)
lines = st.lists(almost | values, max_size=4)
outputs = (
    st.binary(max_size=60)
    | texts.map(str.encode)
    | (reports | almost | values).map(lambda one: json.dumps(one).encode())
    | lines.map(lambda many: "\n".join(map(json.dumps, many)).encode())
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Output with some bytes replaced, removed or repeated."""
    data = bytearray(draw(outputs))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data) * draw(st.integers(1, 2))


@given(damaged())
def test_any_output_is_an_observation_or_one_line(output: bytes) -> None:
    try:
        found = observed(output)
    except ObservationFailed as failure:
        line = failure.one_line()
        assert "\n" not in line and len(line) < 500
        return
    keys = [(one.invariant, one.component) for one in found.signals]
    assert len(keys) == len(set(keys))
    for one in found.signals:
        assert one.holds is False and one.severity is not None
        assert one.component and one.message and "\n" not in one.component + one.message
        json.dumps([one.value, dict(one.facts)], allow_nan=False)
    checked = check("q", {"violation": VIOLATION}, found, {}, 0.0)
    assert {(key.invariant, key.component) for key in checked.broken} == set(keys)
