"""What the program counts, in our terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from midwatch.events import Spend
from midwatch.model import Usage


def spend_by_model(model_usage: Mapping[str, Any]) -> dict[str, Spend]:
    """The program's sums per model, as its results and its transcript have them."""
    return {
        name: _spend(used)
        for name, used in model_usage.items()
        if isinstance(used, Mapping)
    }


def added(total: Mapping[str, Spend], before: Mapping[str, Spend]) -> dict[str, Spend]:
    """What came on top of `before`, without the models that cost nothing; never negative."""
    more = {
        name: _less(cost, before.get(name, Spend())) for name, cost in total.items()
    }
    return {name: cost for name, cost in more.items() if cost != Spend()}


def lesser(one: Mapping[str, Spend], other: Mapping[str, Spend]) -> dict[str, Spend]:
    """What both have."""
    return {
        name: min(one[name], other[name], key=lambda spend: spend.cost_usd)
        for name in one
        if name in other
    }


def _spend(used: Mapping[str, Any]) -> Spend:
    usage = Usage(
        input_tokens=int(used.get("inputTokens") or 0),
        output_tokens=int(used.get("outputTokens") or 0),
        cache_read_tokens=int(used.get("cacheReadInputTokens") or 0),
        cache_write_tokens=int(used.get("cacheCreationInputTokens") or 0),
    )
    return Spend(usage, float(used.get("costUSD") or 0.0))


def _less(total: Spend, before: Spend) -> Spend:
    now, then = total.usage, before.usage
    return Spend(
        Usage(
            max(0, now.input_tokens - then.input_tokens),
            max(0, now.output_tokens - then.output_tokens),
            max(0, now.cache_read_tokens - then.cache_read_tokens),
            max(0, now.cache_write_tokens - then.cache_write_tokens),
        ),
        max(0.0, round(total.cost_usd - before.cost_usd, 9)),
    )
