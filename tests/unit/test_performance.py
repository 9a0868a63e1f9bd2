"""What the benchmarks' frame measures, and the pages that are written from it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from bench._meter import Cost, Meter, command_cost
from bench.report import Spread, against_floor, as_json, cells, turns
from tools.performance import (
    PERFORMANCE_PAGE,
    RESULTS,
    SCALING_PAGE,
    merged,
    performance,
    scaling,
)

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
"""Uses 0.3 s of processor time, however busy the machine is."""


@pytest.mark.integration
def test_what_a_child_uses_is_on_the_bill_alive_and_ended() -> None:
    alive = f"{BURN}print('done', flush=True)\ninput()"
    with Meter() as meter:
        subprocess.run([sys.executable, "-c", BURN], check=True)
        child = subprocess.Popen(
            [sys.executable, "-c", alive],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
    child.communicate(b"\n")
    assert meter.cost.processor > 0.55  # counted in ticks of 10 ms


@pytest.mark.integration
async def test_a_command_is_billed_for_what_it_leaves_behind(tmp_path: Path) -> None:
    leave = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}])"
    )
    cost = await command_cost(sys.executable, "-c", leave, cwd=tmp_path)
    assert cost.processor > 0.3 and cost.memory > 1


@pytest.mark.integration
async def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        await command_cost(sys.executable, "-c", "raise SystemExit(3)", cwd=tmp_path)


async def test_sides_take_turns_and_ratios_are_taken_turn_by_turn() -> None:
    order: list[str] = []

    def side(name: str, *seconds: float) -> Callable[[], Awaitable[Cost]]:
        left = iter(seconds)

        async def once() -> Cost:
            order.append(name)
            return Cost(wall=next(left))

        return once

    # The machine becomes ten times slower: no ratio shows it.
    sides = {"ours": side("a", 99, 2, 20, 200), "floor": side("b", 99, 1, 10, 100)}
    samples = await turns(sides, 3)
    assert "".join(order) == "abababab"
    row = against_floor("x", samples["ours"].wall, samples["floor"].wall, 2.0)
    assert as_json(row)["ratio"] == {"minimum": 2, "median": 2, "maximum": 2}
    assert row.met and cells(as_json(row))[-3:] == ("2×", "≤ 2×", "met")
    assert as_json(row)["value"] == {"minimum": 2, "median": 20, "maximum": 200}


def test_a_scaled_spread_keeps_its_ends() -> None:
    scaled = 1000 * Spread([0.1, 0.2, 0.4]) / 2
    assert (scaled.minimum, float(scaled), scaled.maximum) == (50, 100, 200)


def test_the_pages_say_what_was_measured() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PERFORMANCE_PAGE.read_text(encoding="utf-8")
    assert page == performance(results), "run `python -m tools.performance`"
    arithmetic = SCALING_PAGE.read_text(encoding="utf-8")
    assert arithmetic == scaling(results, arithmetic)


def test_a_benchmark_that_crashed_keeps_its_last_figures() -> None:
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    crashed, newer = copy.deepcopy(known), copy.deepcopy(known)
    for one in crashed["benchmarks"]:
        one.update(rows=[], error="ended with 1")
    newer["benchmarks"] = newer["benchmarks"][:1]
    newer["benchmarks"][0]["date"] = "2999-01-01"
    again = merged(known, [crashed, newer])
    assert [one["name"] for one in again["benchmarks"]] == [
        one["name"] for one in known["benchmarks"]
    ]
    assert again["benchmarks"][0]["date"] == "2999-01-01"
    assert again["benchmarks"][1:] == known["benchmarks"][1:]


def test_arithmetic_without_its_figures_is_an_error() -> None:
    page = SCALING_PAGE.read_text(encoding="utf-8")
    with pytest.raises(KeyError, match="make performance ARGS=scaling"):
        scaling({"machine": {}, "benchmarks": []}, page)
