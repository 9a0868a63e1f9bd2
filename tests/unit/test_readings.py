"""A reading is compared as numbers with units: form does not matter, a sign, a unit or a magnitude does."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.agent.quotes import normalise
from midwatch.agent.readings import gives_value
from midwatch.units import format_duration, format_size


def gives(value: str, quote: str, evidence: str = "") -> bool:
    return gives_value(value, normalise(quote), normalise(f"{quote}\n{evidence}"))


@pytest.mark.parametrize(
    ("value", "quote", "elsewhere"),
    [
        ("12.2 s", "took 12.2 s (limit 10 s)", ""),
        ("12.2 s (limit 10 s)", "took 12.2s", "limit: at most 10s (seconds)"),
        ("121397856", "xid age 121397856.0", ""),
        ("121 397 856 bytes", "used_bytes: 121397856", ""),
        ("121.4 MB", "used_bytes: 121397856", ""),
        ("115.8 MiB", "used_bytes: 121397856.0", ""),
        ("95 %", "usage 0.95", ""),
        ("0.95", "usage 95%", ""),
        ("200 s", "transaction open for 3m 20s", ""),
        ("3 min 20 s", "transaction open for 200 s", ""),
        ("1 day 02:03:04", "open for 93784 s", ""),
        ("0.095 s", "rate 95 ms", ""),
        ("10–15 s", "between 10 and 15 s", ""),
        ("97/100 connections", "used: 97", "max_connections: 100"),
        ("31 connections", "12 idle, 19 active", ""),
        ("−3 s", "lag -3 s", ""),
        ("120000000", "value 1.2e+08", ""),
        ("12k rows", "rows: 12000", ""),
        ("1.7 s", '{instance="a:9090"}: 1.70123', ""),
        ("0.1 → 3.2", "min 0.1, max 3.2, last 3.1 at 14:05 UTC", ""),
        ("1.25.3", "server: nginx/1.25.3", ""),
        ("off", "fsync: off", ""),
        ("NaN", "value: NaN", ""),
        ("14:00:05", "opened: 2026-11-28 14:00:05", ""),
        ("90 s", "for: 1m30s", ""),
        ("2h45m", "open for 165 min", ""),
        ("12,5 s", "took 12.5 s", ""),
        ("1.234.567 Bytes", "used 1234567 bytes", ""),
        ("90 GiB", "/dev/sda1 100G 90G 10G 90% /", ""),
        ("97 of 100 (97 %)", "97 of 100 connections", ""),
        ("3 sessions", "three sessions wait", ""),
        ("2 requests per second", "120 requests/min", ""),
        ("off (default on)", "autovacuum_enabled=off", ""),
        ("idle in transaction", "4711  app  idle in transaction  00:12:00", ""),
        ("paused", "replay paused", ""),
    ],
)
def test_form_does_not_matter(value: str, quote: str, elsewhere: str) -> None:
    assert gives(value, quote, elsewhere)


@pytest.mark.parametrize(
    ("value", "quote", "elsewhere"),
    [
        ("95 GB", "rate 95 ms", ""),
        ("95 s", "rate 95 ms", ""),
        ("-95 ms", "rate 95 ms", ""),
        ("minus 95 ms", "rate 95 ms", ""),
        ("95 ms", "rate -95 ms", ""),
        ("950 ms", "rate 95 ms", ""),
        ("95 °C", "rate 95 ms", ""),
        ("95 requests", "rate 95 ms", ""),
        ("95 million", "rate 95", ""),
        ("0.95 %", "usage 95 %", ""),
        ("12 MB", "rate 12 MB/s", ""),
        ("12 MB/s", "size 12 MB", ""),
        ("31 s", "31 sessions wait", "for 5 s"),
        ("95 s", "duration_ms: 95", ""),
        ("95 s", "size_bytes: 95", ""),
        ("12 min", "took 12 ms", ""),
        ("10 s", "took 12.2 s", "limit 10 s"),
        ("12.2 s (limit 99 s)", "took 12.2 s", "limit 10 s"),
        ("31", "pid 3123", ""),
        ("1 GB", "1.4 GB", ""),
        ("zero", "rate 95 ms", ""),
        ("NaN", "rate 95 ms", ""),
        ("rate", "rate 95 ms", ""),
        ("1.25.4", "nginx/1.25.3", ""),
        ("5 of 5", "0 of 5 replicas", ""),
        ("2 requests per second", "2 requests per minute", ""),
        ("1561 s", "pid 1561: idle for 2.7 s", ""),
        ("paused", "replay is not paused", ""),
        ("idle in transaction", "not idle in transaction", ""),
        ("", "rate 95 ms", ""),
    ],
)
def test_another_value_fails(value: str, quote: str, elsewhere: str) -> None:
    assert not gives(value, quote, elsewhere)


numbers = st.decimals(Decimal("0.01"), 10**9, places=2)
units = st.sampled_from(["ms", "s", "min", "h", "B", "kB", "MiB", "GB", "%"])


@given(numbers, units, units, st.sampled_from(["", " "]))
def test_a_value_gives_itself_and_nothing_else(
    number: Decimal, unit: str, other: str, gap: str
) -> None:
    quote = f"measured: {number}{gap}{unit}, limit 7 rows"
    assert gives(f"{number} {unit}", quote)
    assert gives(f"{number}", quote)
    assert not gives(f"-{number} {unit}", quote)
    assert not gives(f"{number * 10} {unit}", quote)
    assert gives(f"{number} {other}", quote) is (unit == other)


@given(st.integers(1, 10**7))
def test_what_the_system_writes_is_converted(seconds: int) -> None:
    shown = format_duration(seconds)
    assert gives(shown, f"open for {shown}")
    if seconds < 60 or shown.endswith("s"):
        assert gives(f"{seconds} s", f"open for {shown}")
    assert gives(format_size(seconds), f"size_bytes: {seconds}")


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_judged(value: str, quote: str) -> None:
    gives(value, quote)
    assert not gives("".join(c for c in value if c.isalpha()), "rate 95 ms")
