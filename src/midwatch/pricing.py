"""The cost of a call to Claude, from the price list of the package `genai-prices`."""

from __future__ import annotations

from midwatch.model import Usage

# Dollars per million tokens for a model that the price list does not know: on the high
# side, as a guess that is too low would let the budget be exceeded unnoticed.
_UNKNOWN_INPUT = 15.0
_UNKNOWN_OUTPUT = 75.0


def cost_usd(model: str, usage: Usage) -> float:
    """Return the price of a call in US dollars; a model without a listed price is priced high."""
    listed = _listed_usd(model, usage)
    if listed is not None:
        return listed
    tokens = _UNKNOWN_INPUT * _total_input(usage)
    return (tokens + _UNKNOWN_OUTPUT * usage.output_tokens) / 1e6


def is_known(model: str) -> bool:
    """Return whether the price list has the model."""
    return _listed_usd(model, Usage(input_tokens=1)) is not None


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
