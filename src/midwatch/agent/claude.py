"""The only caller of the Messages API. Every result and every error of a call is returned as a `Reply`.

The SDK's own retries are off: they would sleep through a long ``retry-after`` inside the call. The
runner waits instead, and stores the pause, so that it survives a restart and every worker sees it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import httpx2
import pydantic
from anthropic.resources.messages import DEPRECATED_MODELS

from midwatch.agent.diagnosis import CACHED, Prompt
from midwatch.config import explain_problem
from midwatch.diagnosis_schema import (
    DiagnosisOutput,
    Kind,
    NotSent,
    Reply,
    ToolCall,
    parse_answer,
    parse_truncated,
)
from midwatch.errors import SettingsError
from midwatch.model import Usage
from midwatch.pricing import names_of
from midwatch.provider import (
    ApiAccess,
    check_addresses,
    cloud_client,
    credential_errors,
    trust,
)

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
    "tool_use": Kind.ASKED,
    "refusal": Kind.REFUSED,
    "max_tokens": Kind.CUT,
    "model_context_window_exceeded": Kind.REJECTED,
}


@dataclass(slots=True)
class _Way:
    """How far a call got: whether its request is traced, and whether a part of it was sent."""

    traced: bool = False
    sent: bool = False

    async def note(self, event: str, info: Any) -> None:
        """Take in a step of the HTTP client, such as `http11.send_request_headers.started`."""
        self.sent = self.sent or "send_request" in event


_WAY: ContextVar[_Way | None] = ContextVar("way", default=None)


async def _trace(request: httpx2.Request) -> None:
    if (way := _WAY.get()) is not None:
        way.traced = True
        request.extensions["trace"] = way.note


class Claude:
    """Asks one model.

    Args:
        model: The model's id, such as "claude-sonnet-5-5".
        timeout: Seconds that a whole call may take. The SDK's own timeout counts per read, so that
            an answer that arrives byte by byte would pass it.
        access: How the API is reached; a text is the key.
        base_url: The address of the API, for a key; None is Anthropic's.
        now: Returns the wall-clock time, for a ``retry-after`` that is a date.
    """

    def __init__(
        self,
        model: str,
        timeout: float,
        access: ApiAccess | str,
        base_url: str | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if isinstance(access, str):
            access = ApiAccess(access, base_url)
        self.model = model
        self.provider = access.provider
        self._timeout = timeout
        self._now = now
        self._client = open_client(access, timeout, on_request=_trace)

    async def ask(self, prompt: Prompt, max_tokens: int) -> Reply:
        """Make one call. Errors of the API and of the network are returned, never raised."""
        way = _Way()
        _WAY.set(way)
        try:
            async with asyncio.timeout(self._timeout):
                raw = await self._client.beta.messages.with_raw_response.parse(
                    model=self.model,
                    max_tokens=max_tokens,
                    system=[
                        {"type": "text", "text": prompt.system, "cache_control": CACHED}
                    ],
                    messages=prompt.messages(),
                    output_format=DiagnosisOutput if prompt.schema else anthropic.omit,
                    **_tools(prompt),
                )
                return await self._read(raw, prompt)
        except asyncio.CancelledError:
            if way.traced and not way.sent:
                raise NotSent from None
            raise
        except TimeoutError:
            return Reply(
                Kind.UNREACHABLE, error=f"no answer within {self._timeout:g} s"
            )
        except anthropic.APIStatusError as error:
            return self._error_reply(error)
        except anthropic.CredentialsError as error:
            return Reply(Kind.UNAUTHORISED, error=_short(error))
        except anthropic.AnthropicError as error:
            return Reply(Kind.UNREACHABLE, error=_short(error))
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            return Reply(Kind.UNREACHABLE, error=_short(error))
        except credential_errors() as error:
            if self.provider == "anthropic":
                raise
            return Reply(Kind.UNAUTHORISED, error=_short(error))

    async def close(self) -> None:
        await self._client.close()

    # ------------------------------------------------------------------ reading an answer

    async def _read(self, raw: Any, prompt: Prompt) -> Reply:
        """Read the raw message before it is parsed: `parse` fails on a refusal and loses the usage."""
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
                error="the answer is not a message of the Messages API",
                request_id=request_id,
            )
        common = {
            "usage": _usage(body.get("usage")),
            "model": str(body.get("model") or self.model),
            "asked_model": self.model,
            "request_id": request_id,
            "message_id": str(body.get("id") or ""),
            "stop_reason": str(body.get("stop_reason") or ""),
            "text": _text(body),
        }
        kind = _BY_STOP_REASON.get(common["stop_reason"], Kind.ANSWERED)
        if kind is Kind.ASKED:
            return _asked(body, prompt, common)
        if kind is Kind.REFUSED:
            return Reply(kind, error="the model refused to answer", **common)
        if kind is Kind.REJECTED:
            return Reply(kind, error="the context window was exceeded", **common)
        if kind is Kind.CUT:
            return Reply(
                kind,
                parse_truncated(common["text"]),
                error="cut by max_tokens",
                **common,
            )
        return _parsed(common)

    # ------------------------------------------------------------------ reading an error

    def _error_reply(self, error: anthropic.APIStatusError) -> Reply:
        kind = map_api_error(error.status_code, error.type, error.error_code)
        message = error.api_message or _short(error)
        return Reply(
            kind,
            error=f"{error.status_code} {error.type or ''}: {message}"[:_ERROR_LENGTH],
            request_id=error.request_id,
            retry_after=self._retry_after(error.response.headers),
        )

    def _retry_after(self, headers: httpx2.Headers) -> float | None:
        """Return the seconds of ``retry-after-ms`` or ``retry-after`` (seconds or a date), or None."""
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


def map_api_error(status: int, type_: str | None, code: str | None) -> Kind:
    """Map an API error to the kind of reply: by its code, then its type, then its HTTP status."""
    if code in _SPEND_CODES:
        return Kind.SPEND_LIMIT
    if status == 413:
        return Kind.REJECTED
    if type_ in _BY_TYPE:
        return _BY_TYPE[type_]
    return _BY_STATUS.get(status, Kind.UNREACHABLE)


def _parsed(common: dict[str, Any]) -> Reply:
    if not common["text"].strip():
        return Reply(Kind.INVALID, error="the answer has no text", **common)
    try:
        return Reply(Kind.ANSWERED, parse_answer(common["text"]), **common)
    except pydantic.ValidationError as error:
        return Reply(Kind.INVALID, error=_schema_problems(error), **common)


def _tools(prompt: Prompt) -> dict[str, Any]:
    """Return the tools of a request. A prompt without them makes the same request as if there were none."""
    if not prompt.tools:
        return {}
    choice = {} if prompt.may_ask else {"tool_choice": {"type": "none"}}
    return {"tools": list(prompt.tools), **choice}


def _asked(body: dict[str, Any], prompt: Prompt, common: dict[str, Any]) -> Reply:
    """Return the calls of tools in a message; INVALID if there are none, or none is admitted."""
    blocks = body.get("content")
    content = tuple(one for one in blocks or () if isinstance(one, dict))
    calls = tuple(
        ToolCall(str(one["id"]), str(one.get("name")), one.get("input") or {})
        for one in content
        if one.get("type") == "tool_use" and one.get("id")
    )
    if not calls or not (prompt.tools and prompt.may_ask):
        why = "it asked for tools, of which none can be used: answer now"
        return Reply(Kind.INVALID, error=why, **common)
    return Reply(Kind.ASKED, calls=calls, content=content, **common)


def _usage(counted: Any) -> Usage:
    counts = counted if isinstance(counted, dict) else {}

    def tokens(name: str) -> int:
        value = counts.get(name)
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


def _schema_problems(error: pydantic.ValidationError) -> str:
    """Return which fields of the answer do not fit the schema, their values, and what is allowed."""
    problems = error.errors(include_url=False)[:8]
    if problems[0]["type"] == "json_invalid":
        return "the answer is not valid JSON"
    explained = (
        explain_problem(one, DiagnosisOutput, what="field").message for one in problems
    )
    return "; ".join(explained)[:_ERROR_LENGTH]


def _short(error: BaseException) -> str:
    cause = error.__cause__
    text = f"{error}" + (f": {cause}" if cause is not None and str(cause) else "")
    return f"{type(error).__name__}: {text}"[:_ERROR_LENGTH]


# ------------------------------------------------------------------ probe

PROBE_SECONDS = 10.0
"""Seconds that a whole probe may take."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether the key and the model work, and what the API answered.

    `temporary` is true where the API may answer differently in a moment.
    """

    works: bool
    message: str
    temporary: bool = False


async def probe(
    access: ApiAccess | str,
    model: str,
    base_url: str | None = None,
    seconds: float = PROBE_SECONDS,
) -> ProbeResult:
    """Check whether the credentials work and the model exists. Errors are returned, never raised.

    It costs nothing, but for a cloud, which is asked for an answer of one token.
    """
    if isinstance(access, str):
        access = ApiAccess(access, base_url)
    try:
        client = open_client(access, seconds)
    except SettingsError as error:
        return ProbeResult(False, error.one_line())
    host = client.base_url.host
    try:
        async with asyncio.timeout(seconds), client:
            await (_ask if access.provider == "anthropic" else _ask_cloud)(
                client, model
            )
    except TimeoutError:
        return ProbeResult(False, f"{host} did not answer within {seconds:g} s")
    except anthropic.APIStatusError as error:
        return _map_probe_error(error, model, host)
    except anthropic.APIConnectionError as error:
        return ProbeResult(False, f"{host} is unreachable: {error.__cause__ or error}")
    except (anthropic.APIError, httpx2.HTTPError, OSError, ValueError) as error:
        return ProbeResult(
            False, f"{host} is not a Messages API: {type(error).__name__}"
        )
    except credential_errors() as error:
        if access.provider == "anthropic":
            raise
        return ProbeResult(False, f"no credentials for {access.provider}: {error}")
    return ProbeResult(True, f"accepted by {host}, which serves {model}")


def open_client(
    access: ApiAccess,
    timeout: float,
    on_request: Callable[[httpx2.Request], Awaitable[None]] | None = None,
) -> Any:
    """Return the SDK's asynchronous client. Raises SettingsError for a cloud without what it needs or a bad proxy."""
    check_addresses(access)
    options: dict[str, Any] = {"max_retries": 0, "timeout": timeout}
    http: dict[str, Any] = {}
    if access.needs_trust:
        http["verify"] = trust(access.environ)
    if on_request is not None and access.client is None:
        http["event_hooks"] = {"request": [on_request]}
    if http:
        options["http_client"] = anthropic.DefaultAsyncHttpxClient(**http)
    if access.provider != "anthropic":
        return cloud_client(access, **options)
    return anthropic.AsyncAnthropic(
        api_key=access.api_key,
        auth_token=access.auth_token,
        base_url=access.base_url,
        default_headers=dict(access.headers),
        **options,
    )


async def _ask(client: anthropic.AsyncAnthropic, model: str) -> None:
    """Ask for the model's card; where a gateway has none, count tokens, which is free as well."""
    try:
        card = await client.models.retrieve(model)
        if getattr(card, "type", None) != "model":
            raise ValueError("the answer is not a model")
    except anthropic.NotFoundError:
        await client.messages.count_tokens(
            model=model, messages=[{"role": "user", "content": "?"}]
        )


async def _ask_cloud(client: Any, model: str) -> None:
    """Ask for one token: clouds have neither cards of models nor, all of them, a count of tokens."""
    await client.messages.create(
        model=model, max_tokens=1, messages=[{"role": "user", "content": "?"}]
    )


def _map_probe_error(
    error: anthropic.APIStatusError, model: str, host: str
) -> ProbeResult:
    status, message = error.status_code, error.api_message or str(error)
    if status in (401, 403):
        return ProbeResult(False, f"{host} refuses the key ({status}): {message}")
    if status == 404:
        return ProbeResult(False, f"{host} does not know the model {model}: {message}")
    temporary = status == 429 or status >= 500
    return ProbeResult(False, f"{host} answers with {status}: {message}", temporary)


def end_of_life(model: str) -> str | None:
    """Return the date of a model's retirement as the SDK writes it, or None if none is announced."""
    ends = (DEPRECATED_MODELS.get(name) for name in names_of(model))
    return next(filter(None, ends), None)
