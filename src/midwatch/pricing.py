"""The cost of a call to Claude, from the price list of the package `genai-prices`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from midwatch.model import Usage

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


def _listed_usd(model: str, usage: Usage) -> float | None:
    """Return the listed price in US dollars, or None if the model is not listed."""
    # With its HTTP client it takes 10 MB, which a monitor never needs.
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    # The price list counts cached tokens as part of the input, the API beside it.
    priced = PricedUsage(
        input_tokens=_total_input(usage),
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
    )
    try:
        price = calc_price(priced, model_ref=model, provider_id="anthropic")
    except LookupError:
        return None
    return float(price.total_price)


def _total_input(usage: Usage) -> int:
    return usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
