"""One cheap question to the Messages API: does the key work, and is the model there?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import anthropic
import httpx2
from anthropic.resources.messages import DEPRECATED_MODELS

from midwatch.prices import is_known

PROBE_SECONDS = 10.0
"""Wall clock of the whole probe."""


@dataclass(frozen=True, slots=True)
class Probed:
    """`passing` is true where the answer may be another one in a moment."""

    works: bool
    says: str
    passing: bool = False


async def probe(
    key: str, model: str, base_url: str | None, seconds: float = PROBE_SECONDS
) -> Probed:
    """Ask for the model. Never raises for anything the API or the network does."""
    client = anthropic.AsyncAnthropic(
        api_key=key, base_url=base_url, max_retries=0, timeout=seconds
    )
    where = client.base_url.host
    try:
        async with asyncio.timeout(seconds), client:
            await _ask(client, model)
    except TimeoutError:
        return Probed(False, f"{where} did not answer within {seconds:g} s")
    except anthropic.APIStatusError as error:
        return _refused(error, model, where)
    except anthropic.APIConnectionError as error:
        return Probed(False, f"{where} is unreachable: {error.__cause__ or error}")
    except (anthropic.APIError, httpx2.HTTPError, OSError, ValueError) as error:
        return Probed(False, f"{where} is no Messages API: {type(error).__name__}")
    return Probed(True, f"accepted by {where}, which serves {model}")


async def _ask(client: anthropic.AsyncAnthropic, model: str) -> None:
    """The model's card; where a gateway has none, a count of tokens, which is free as well."""
    try:
        card = await client.models.retrieve(model)
        if getattr(card, "type", None) != "model":
            raise ValueError("the answer is no model")
    except anthropic.NotFoundError:
        await client.messages.count_tokens(
            model=model, messages=[{"role": "user", "content": "?"}]
        )


def _refused(error: anthropic.APIStatusError, model: str, where: str) -> Probed:
    status, said = error.status_code, error.api_message or str(error)
    if status in (401, 403):
        return Probed(False, f"{where} refuses the key ({status}): {said}")
    if status == 404:
        return Probed(False, f"{where} does not know the model {model}: {said}")
    passing = status == 429 or status >= 500
    return Probed(False, f"{where} answers with {status}: {said}", passing)


def ends(model: str) -> str | None:
    """The day after which a model is not served any more, as the SDK writes it."""
    return DEPRECATED_MODELS.get(model)


def is_priced(model: str) -> bool:
    return is_known(model)
