"""The one place that calls the Messages API; whatever happens there comes back as a `Reply`.

The SDK's own retries are off: they would sleep through a long ``retry-after`` inside the call.
Waiting is the runner's, in the store, where it survives a restart and every worker sees it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import httpx2
import pydantic
from anthropic import AsyncAnthropic
from anthropic.resources.messages import DEPRECATED_MODELS

from midwatch.agent.diagnosis import Prompt
from midwatch.diagnosis_schema import DiagnosisOutput, Kind, Reply, parse_truncated
from midwatch.model import Usage
from midwatch.pricing import is_known

_LONGEST_RETRY_AFTER = 24 * 3600.0
_ERROR_LENGTH = 500
_SPEND_CODES = {"enforced_spend_limit_reached", "contract_spend_limit_reached"}

# By the API's error type, which also names errors that arrive with status 200.
_BY_TYPE = {
    "rate_limit_error": Kind.RATE_LIMITED,
    "authentication_error": Kind.UNAUTHORISED,
    "permission_error": Kind.UNAUTHORISED,
    "not_found_error": Kind.UNAUTHORISED,
    "billing_error": Kind.SPEND_LIMIT,
    "invalid_request_error": Kind.REJECTED,
    "request_too_large": Kind.REJECTED,
    "timeout_error": Kind.UNREACHABLE,
    "api_error": Kind.UNREACHABLE,
    "overloaded_error": Kind.UNREACHABLE,
    "conflict_error": Kind.UNREACHABLE,
}
_BY_STATUS = {
    400: Kind.REJECTED,
    401: Kind.UNAUTHORISED,
    402: Kind.SPEND_LIMIT,
    403: Kind.UNAUTHORISED,
    404: Kind.UNAUTHORISED,
    405: Kind.UNAUTHORISED,
    413: Kind.REJECTED,
    422: Kind.REJECTED,
    429: Kind.RATE_LIMITED,
    431: Kind.REJECTED,
}
_BY_STOP_REASON = {
    "refusal": Kind.REFUSED,
    "max_tokens": Kind.CUT,
    "model_context_window_exceeded": Kind.REJECTED,
}


class Claude:
    """Asks one model. `timeout` is a wall clock in seconds: the SDK's own counts per read, and a
    slow drip passes it."""

    def __init__(
        self,
        model: str,
        timeout: float,
        api_key: str,
        base_url: str | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.model = model
        self._timeout = timeout
        self._now = now
        self._client = AsyncAnthropic(
            api_key=api_key, base_url=base_url, max_retries=0, timeout=timeout
        )

    async def ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        """One call. Never raises for anything the API or the network does."""
        try:
            async with asyncio.timeout(self._timeout):
                raw = await self._client.beta.messages.with_raw_response.parse(
                    model=self.model,
                    max_tokens=max_tokens,
                    system=[
                        {
                            "type": "text",
                            "text": prompt.system,
                            "cache_control": {"type": "ephemeral"},
                        }
                    ],
                    messages=[{"role": "user", "content": prompt.user}],
                    output_format=DiagnosisOutput,
                )
                return await self._read(raw)
        except TimeoutError:
            return Reply(
                Kind.UNREACHABLE, error=f"no answer within {self._timeout:g} s"
            )
        except anthropic.APIStatusError as error:
            return self._refused_by_api(error)
        except anthropic.CredentialsError as error:
            return Reply(Kind.UNAUTHORISED, error=_short(error))
        except anthropic.AnthropicError as error:
            return Reply(Kind.UNREACHABLE, error=_short(error))
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            return Reply(Kind.UNREACHABLE, error=_short(error))

    async def close(self) -> None:
        await self._client.close()

    # ------------------------------------------------------------------ reading an answer

    async def _read(self, raw: Any) -> Reply:
        """Look at the raw message first: `parse` fails on a refusal and loses the usage."""
        request_id = raw.request_id
        try:
            body = json.loads(await raw.text())
        except ValueError:
            return Reply(
                Kind.UNREACHABLE,
                error="the answer is not JSON, so it is not from the Messages API",
                request_id=request_id,
            )
        if not isinstance(body, dict) or body.get("type") != "message":
            return Reply(
                Kind.UNREACHABLE,
                error="the answer is no message",
                request_id=request_id,
            )
        told = {
            "usage": _usage(body.get("usage")),
            "model": str(body.get("model") or self.model),
            "request_id": request_id,
            "text": _text(body),
        }
        kind = _BY_STOP_REASON.get(str(body.get("stop_reason")), Kind.ANSWERED)
        if kind is Kind.REFUSED:
            return Reply(kind, error="the model refused to answer", **told)
        if kind is Kind.REJECTED:
            return Reply(kind, error="the context window was exceeded", **told)
        if kind is Kind.CUT:
            return Reply(
                kind, parse_truncated(told["text"]), error="cut by max_tokens", **told
            )
        return await self._parsed(raw, told)

    async def _parsed(self, raw: Any, told: dict[str, Any]) -> Reply:
        try:
            message = await raw.parse()
        except pydantic.ValidationError as error:
            return Reply(Kind.INVALID, error=_validation(error), **told)
        output = message.parsed_output
        if not isinstance(output, DiagnosisOutput):
            return Reply(Kind.INVALID, error="the answer has no text", **told)
        return Reply(Kind.ANSWERED, output, **told)

    # ------------------------------------------------------------------ reading an error

    def _refused_by_api(self, error: anthropic.APIStatusError) -> Reply:
        kind = classify(error.status_code, error.type, error.error_code)
        said = error.api_message or _short(error)
        return Reply(
            kind,
            error=f"{error.status_code} {error.type or ''}: {said}"[:_ERROR_LENGTH],
            request_id=error.request_id,
            retry_after=self._retry_after(error.response.headers),
        )

    def _retry_after(self, headers: httpx2.Headers) -> float | None:
        """Seconds, from ``retry-after-ms`` or ``retry-after`` (seconds or a date)."""
        try:
            if milliseconds := headers.get("retry-after-ms"):
                seconds = float(milliseconds) / 1000
            elif (named := headers.get("retry-after")) is None:
                return None
            elif named.strip().replace(".", "", 1).isdigit():
                seconds = float(named)
            else:
                seconds = (parsedate_to_datetime(named) - self._now()).total_seconds()
        except (ValueError, TypeError):
            return None
        return min(max(seconds, 1.0), _LONGEST_RETRY_AFTER)


def classify(status: int, type_: str | None, code: str | None) -> Kind:
    """What an API error means for us: by code, then type, then status."""
    if code in _SPEND_CODES:
        return Kind.SPEND_LIMIT
    if status == 413:
        return Kind.REJECTED
    if type_ in _BY_TYPE:
        return _BY_TYPE[type_]
    return _BY_STATUS.get(status, Kind.UNREACHABLE)


def _usage(counted: Any) -> Usage:
    told = counted if isinstance(counted, dict) else {}

    def tokens(name: str) -> int:
        value = told.get(name)
        return value if isinstance(value, int) and value >= 0 else 0

    return Usage(
        tokens("input_tokens"),
        tokens("output_tokens"),
        tokens("cache_read_input_tokens"),
        tokens("cache_creation_input_tokens"),
    )


def _text(body: dict[str, Any]) -> str:
    blocks = body.get("content")
    texts = (
        block.get("text", "")
        for block in (blocks if isinstance(blocks, list) else [])
        if isinstance(block, dict) and block.get("type") == "text"
    )
    return "".join(text for text in texts if isinstance(text, str))


def _validation(error: pydantic.ValidationError) -> str:
    """Where and why the answer does not fit, without repeating the answer."""
    problems = [
        f"{'.'.join(map(str, one['loc'])) or 'answer'}: {one['msg']}"
        for one in error.errors(include_input=False, include_url=False)[:8]
    ]
    return "; ".join(problems)[:_ERROR_LENGTH]


def _short(error: BaseException) -> str:
    cause = error.__cause__
    text = f"{error}" + (f": {cause}" if cause is not None and str(cause) else "")
    return f"{type(error).__name__}: {text}"[:_ERROR_LENGTH]


# ------------------------------------------------------------ probe
# One cheap question to the Messages API: does the key work, and is the model there?

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
