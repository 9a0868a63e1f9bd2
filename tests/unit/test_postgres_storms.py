"""What is a storm of errors, and what is usual."""

from __future__ import annotations

import json

from midwatch.model import Json, Signal
from midwatch.subjects.postgres.log_lines import Record
from midwatch.subjects.postgres.log_storms import learned, storms

WINDOW, LIMIT = 300.0, 20.0


def errors(count: int, message: str = 'relation "t{}" does not exist') -> list[Record]:
    return [Record("ERROR", message.format(n), f"line {n}") for n in range(count)]


def polled(
    state: Json, *counts: int, every: float = 30.0, start: float = 0.0
) -> tuple[Json, tuple[Signal, ...]]:
    """Observe as many errors as given, every so often."""
    signals: tuple[Signal, ...] = ()
    for place, count in enumerate(counts, 1):
        at = start + every * place
        state, signals = storms(state, errors(count), at, every, WINDOW, LIMIT)
        state = json.loads(json.dumps(state))
    return state, signals


def test_a_new_shape_counts_and_is_no_storm_once_the_window_is_over() -> None:
    state, [signal] = polled({}, 0, 15, 15)
    assert signal.component == 'ERROR: relation "#" does not exist'
    assert signal.value == 30 and "usually hardly any" in signal.message
    _, signals = polled(state, *[0] * 12, start=90)
    assert not signals


def test_what_was_usual_before_is_none_and_ten_times_as_much_is_one() -> None:
    state = learned(errors(100), 1000)  # 30 in a window
    state, signals = polled(state, *[3] * 20)
    assert not signals
    state, [signal] = polled(state, *[40] * 10, start=600)
    assert signal.value is not None and signal.value > 300
    # It does not become usual while it lasts.
    _, again = polled(state, *[40] * 400, start=900)
    assert again and (again[0].value or 0) > 300


def test_few_errors_of_many_shapes_keep_the_state_small() -> None:
    state: Json = {}
    words = [f"{chr(97 + n % 26)}{chr(97 + n // 26 % 26)}" for n in range(600)]
    records = [Record("FATAL", f"role {word} is unknown", "x" * 900) for word in words]
    state, signals = storms(state, records, 30.0, 30.0, WINDOW, LIMIT)
    assert len(json.dumps(state)) < 25_000
    assert [one.component for one in signals if (one.value or 0) > LIMIT] == [
        "errors of many other shapes"
    ]
