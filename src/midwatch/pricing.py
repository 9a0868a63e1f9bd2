"""The cost of a call to Claude, from the price list of the package `genai-prices`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

from midwatch.model import Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

# Dollars per million tokens for a model that the price list does not know: on the high
# side, as a guess that is too low would let the budget be exceeded unnoticed.
_UNKNOWN_INPUT = 15.0
_UNKNOWN_OUTPUT = 75.0
_CLAUDE = re.compile(r"claude-[a-z0-9]+(?:[-.@:][a-z0-9]+)*")
_VERSION = re.compile(r"-v\d+(?::\d+)?(?::\d+k)?$")  # of a model on Bedrock


def cost_usd(model: str, usage: Usage, asked: str = "") -> float:
    """Return the price of a call in US dollars; a model without a listed price is priced high.

    Args:
        model: The model that answered, as the API or a gateway names it.
        usage: The tokens of one request: a long context may cost more for each token.
        asked: The model that was asked for, whose price counts if `model` says nothing.
    """
    for name in (*names_of(model), *names_of(asked)):
        listed = _listed_usd(name, usage)
        if listed is not None:
            return listed
    tokens = _UNKNOWN_INPUT * _total_input(usage)
    return (tokens + _UNKNOWN_OUTPUT * usage.output_tokens) / 1e6


def is_known(model: str) -> bool:
    """Return whether the price list has the model."""
    one = Usage(input_tokens=1)
    return any(_listed_usd(name, one) is not None for name in names_of(model))


def names_of(model: str) -> Iterator[str]:
    """Yield the names under which the price list may have a model that a cloud or a gateway names its own way."""
    if not model:
        return
    yield model
    if found := _CLAUDE.search(model.lower()):
        name = found[0]
        yield name
        yield _VERSION.sub("", name)
        yield _VERSION.sub("", name).replace(".", "-")


def load() -> None:
    """Load the price list, which takes a tenth of a second the first time."""
    _listed("")


def is_loaded() -> bool:
    """Return whether a price takes no time any more."""
    return _listed.cache_info().currsize > 0


@cache
def _listed(model: str) -> ModelInfo | None:
    """Return a model of the price list, or None if it is not listed."""
    # With its HTTP client it takes 10 MB, which a monitor never needs.
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    try:
        found = calc_price(
            PricedUsage(input_tokens=1), model_ref=model, provider_id="anthropic"
        )
    except LookupError:
        return None
    return found.model


def _listed_usd(model: str, usage: Usage) -> float | None:
    """Return the listed price in US dollars, or None if the model is not listed."""
    if (listed := _listed(model)) is None:
        return None
    # The price list counts cached tokens as part of the input, the API beside it.
    tokens = _total_input(usage)
    prices = listed.get_prices(datetime.now(UTC))
    rates = _rates_of.get((model, id(prices), tier := _tier(prices, tokens)))
    if rates is None:
        rates = _rates_of[model, id(prices), tier] = _rates(prices, tokens)
    kinds = (
        usage.input_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
    )
    total = sum(rate * count for rate, count in zip(rates, kinds, strict=True))
    return float(total)


_Rates = tuple[Decimal, Decimal, Decimal, Decimal]
_rates_of: dict[tuple[str, int, int], _Rates] = {}
"""By model, its prices at that time, and the tier of a request: in US dollars for a token of each kind."""


def _tier(prices: ModelPrice, tokens: int) -> int:
    """Return how many thresholds of prices a request with so many tokens of input is above."""
    starts = {
        tier.start
        for price in vars(prices).values()
        for tier in getattr(price, "tiers", ())
    }
    return sum(tokens > start for start in starts)


def _rates(prices: ModelPrice, tokens: int) -> _Rates:
    """Return what a token of input, read from the cache, written into it, and of output costs, in US dollars.

    Within a tier a request costs as much as its tokens do one by one.
    """
    from genai_prices import Usage as PricedUsage

    size = max(tokens, 1)

    def usd(**kinds: int) -> Decimal:
        usage = PricedUsage(input_tokens=size, **{"output_tokens": 0, **kinds})
        return prices.calc_price(usage)["total_price"]

    fresh = usd()
    return (
        fresh / size,
        usd(cache_read_tokens=size) / size,
        usd(cache_write_tokens=size) / size,
        usd(output_tokens=1) - fresh,
    )


def _total_input(usage: Usage) -> int:
    return usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
