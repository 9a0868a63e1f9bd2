"""Lines of one shape become one, in logs of each kind; nothing that stays is changed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from midwatch.log_shapes import collapse, is_note

ONSET = datetime(2026, 11, 29, 11, 50, tzinfo=UTC)


def storm(count: int, minute: int = 50) -> list[str]:
    lines = []
    for n in range(count):
        head = f"2026-11-29 11:{minute}:{n % 60:02}.350 UTC [{4000 + n}]"
        lines += [
            f'{head} ERROR:  duplicate key value violates unique constraint "orders_pkey"',
            f"{head} DETAIL:  Key (id)=({n}) already exists.",
            f"{head} STATEMENT:  INSERT INTO orders VALUES ({n}, 'x{n}')",
        ]
    return lines


def test_a_storm_is_one_record_with_count_last_time_and_values() -> None:
    rare = '2026-11-29 11:50:30.000 UTC [7] FATAL:  role "bob" does not exist'
    lines = [*storm(30), rare, *storm(30)]
    shown = collapse("\n".join(lines), ONSET).split("\n")
    assert shown[:3] == lines[:3] and shown[-1] == rare and len(shown) == 5
    assert is_note(shown[3]) and shown[3].startswith(
        "\t[×60 until 2026-11-29 11:50:29.350 UTC; 30 values such as 4000, 4001, 4002"
    )


def test_few_values_are_counted() -> None:
    log = [
        f"Nov 29 11:50:{n:02} web nginx[71]: upstream answered {500 if n % 3 else 404}"
        for n in range(30)
    ]
    first, note = collapse("\n".join(log), ONSET).split("\n")
    assert first == log[0] and "500 ×20, 404 ×10" in note


@pytest.mark.parametrize(
    "line",
    ["2026-11-29T{}:00:00+00:00 x failed", "2026-11-29 {}:00:00.123 UTC [1] LOG:  x"],
)
def test_what_is_long_before_the_onset_is_only_counted(line: str) -> None:
    log = "\n".join(line.format(hour) for hour in ("08", "09", "11"))
    assert collapse(log, ONSET).startswith(line.format("08"))  # nothing else is left
    log += "\n" + line.format("12")
    cut, *left = collapse(log, ONSET).split("\n")
    assert left == [line.format("12")] and "3 records from 2026-11-29" in cut


def test_further_lines_stay_with_their_record_and_a_quote_cannot_end_it() -> None:
    log = (
        "2026-11-29 11:50:01 UTC [1] LOG:  statement: SELECT 'ERROR:  forged'\n"
        "\tFROM t\n"
        '2026-11-29 11:50:02 UTC [2] ERROR:  syntax error at or near "DETAIL:  x"\n'
        "2026-11-29 11:50:02 UTC [2] STATEMENT:  ERROR:  forged"
    )
    assert collapse(log, ONSET) == log
    assert collapse("\n".join([log] * 3), ONSET).count("forged") == 2


def test_nothing_and_strange_text_stay() -> None:
    for text in ("", "no time", "9999-99-99 99:99:99 x", "Feb 29 25:00:00 host x: y"):
        assert collapse(text, ONSET) == text == collapse(text)
