"""What a call costs, from the package `genai-prices`."""

from __future__ import annotations

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from .model import Usage

# Dollars per million tokens for a model that the price list does not know: on the high
# side, as too low a guess would let a budget be overspent unseen.
_UNKNOWN_INPUT = 15.0
_UNKNOWN_OUTPUT = 75.0


def cost_usd(model: str, usage: Usage) -> float:
    """The price of an answer in US dollars."""
    total_input = (
        usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
    )
    try:
        # The price list counts cached tokens as part of the input, the API beside it.
        price = calc_price(
            PricedUsage(
                input_tokens=total_input,
                cache_read_tokens=usage.cache_read_tokens,
                cache_write_tokens=usage.cache_write_tokens,
                output_tokens=usage.output_tokens,
            ),
            model_ref=model,
            provider_id="anthropic",
        )
    except LookupError:
        return (
            total_input * _UNKNOWN_INPUT + usage.output_tokens * _UNKNOWN_OUTPUT
        ) / 1e6
    return float(price.total_price)


def is_known(model: str) -> bool:
    """Whether the price list has the model."""
    try:
        calc_price(
            PricedUsage(input_tokens=1), model_ref=model, provider_id="anthropic"
        )
    except LookupError:
        return False
    return True
