"""The dashboard and the alerts about Midwatch itself: valid, tested, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tools.tables import METRICS

from ..waiting import PATIENCE

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "midwatch-rules.yaml"
TESTS = DEPLOY / "prometheus" / "midwatch-rules-test.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "midwatch.json").read_text())
OF_THE_LIBRARY = {"midwatch_info": {"version", "instance", "job"}}
"""Metrics that every daemon has, and the labels that a scrape adds."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)"
)


def promtool(*arguments: str | Path) -> None:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [one for one in DASHBOARD["panels"] if one["type"] != "row"]


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in alerts())
    yield from (target["expr"] for one in panels() for target in one["targets"])


@pytest.mark.integration
@needs_promtool
def test_the_alerts_fire_when_they_should() -> None:
    promtool("check", "rules", RULES)
    promtool("test", "rules", TESTS)
    fired = {
        test["alertname"]
        for case in yaml.safe_load(TESTS.read_text())["tests"]
        for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in alerts()}, "each is tested"


@pytest.mark.integration
@needs_promtool
def test_the_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(expressions())
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


def test_every_metric_and_label_exists() -> None:
    labels = {family.name: {*family.labels} for family in METRICS} | OF_THE_LIBRARY
    used: set[str] = set()
    for expr in expressions():
        names = set(re.findall(r"\bmidwatch_\w+", expr))
        known = set().union(*(labels[name] for name in names))
        asked = re.findall(r"(?:by|on|group_left) \(([\w, ]+)\)|\{(\w+)=", expr)
        for group, one in asked:
            assert {*filter(None, [*re.split(r",\s*", group), one])} <= known, expr
        used |= names
    assert len(used) >= 20


def test_the_dashboard_is_one_that_grafana_lays_out() -> None:
    """Every panel has an id of its own, a source, and a place that no other has."""
    every = DASHBOARD["panels"]
    assert len({one["id"] for one in every}) == len(every)
    taken: set[tuple[int, int]] = set()
    for one in every:
        place = one["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, one["title"]
        taken |= cells
    [source] = DASHBOARD["templating"]["list"]
    for one in panels():
        assert one["datasource"]["uid"] == f"${{{source['name']}}}"
        assert all(target["refId"] for target in one["targets"])
