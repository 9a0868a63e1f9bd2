"""What is compared with what in PromQL, and the metrics of an expression."""

from __future__ import annotations

import pytest

from midwatch.subjects.promql import Compared, compared, metrics, parts_of

FREE = '(free{mountpoint="/", x!="a>b"} / size) * 100'


@pytest.mark.parametrize(
    ("expr", "parts"),
    [
        ("up == 0", [Compared("up", "==", 0.0)]),
        (f"{FREE} < 10", [Compared(FREE, "<", 10.0)]),
        ("0.9 < x", [Compared("x", ">", 0.9)]),
        ("(((x > bool 5 * 60)))", [Compared("x", ">", 300.0)]),
        (
            "a > 1 and on(job) b < 2 unless c",
            [Compared("a", ">", 1.0), Compared("b", "<", 2.0), Compared("c")],
        ),
        (
            "foo > on(instance) group_left(x) bar",
            [Compared("foo"), Compared("bar")],
        ),
        ('absent(up{job="x"})', [Compared('up{job="x"}')]),
        (
            "max_over_time(up[5m:1m]) == 0 # c > 5",
            [Compared("max_over_time(up[5m:1m])", "==", 0.0)],
        ),
        ("vector(1)", [Compared("vector(1)")]),
        ("(((", [Compared("(((")]),
        ("", []),
    ],
)
def test_an_expression_without_its_comparison(expr: str, parts: list[Compared]) -> None:
    assert compared(expr) == parts


def test_the_metrics_of_an_expression() -> None:
    expr = "sum by (job, code) (rate(http_total{code=~'5..'}[5m])) / on(job) up > 1 # z"
    assert metrics(expr) == ["http_total", "up"]


@pytest.mark.parametrize(
    ("expr", "parts"),
    [
        (
            "sum(rate(errors_total{code=~'5..'}[1m])) / sum(x) > 1",
            "rate(errors_total{code=~'5..'}[1m])",
        ),
        ("max by (queue) (age_seconds) > 3", "age_seconds"),
        ("up == 0", ""),
        ("sum(", ""),
    ],
)
def test_the_parts_of_an_aggregate(expr: str, parts: str) -> None:
    assert parts_of(expr) == (f"topk(10, {parts} > 0)" if parts else "")
