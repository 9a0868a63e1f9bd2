"""The errors of the Messages API as values: types and wording as the API documents them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .answers import STRICT
from .exchange import Exchange


@dataclass(frozen=True)
class Error:
    """An error as the API words it: `type`, `message` and, if given, `details.error_code`."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = STRICT

    status: int
    type: str
    message: str = "scripted error"
    error_code: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, exchange: Exchange) -> None:
        body = {**self.body(), "request_id": exchange.request_id}
        await exchange.send_json(self.status, body, self.headers)

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"type": self.type, "message": self.message}
        code = {"error_code": self.error_code} if self.error_code else {}
        if code or self.details:
            error["details"] = {**code, **self.details}
        return {"type": "error", "error": error}


def rate_limited(
    retry_after: float | None = None, error_code: str | None = None
) -> Error:
    """429, with `retry-after` in seconds if given."""
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    message = "This request would exceed your rate limit."
    return Error(429, "rate_limit_error", message, error_code, headers=headers)


def spend_limit_reached() -> Error:
    """429 that no minute of waiting cures: the spending limit is used up."""
    return rate_limited(error_code="enforced_spend_limit_reached")


def overloaded() -> Error:
    """529."""
    return Error(529, "overloaded_error", "Overloaded")


def server_error(status: int = 500) -> Error:
    """500, or another status of the API's own failures."""
    return Error(status, "api_error", "Internal server error")


def unauthorized() -> Error:
    """401: the key is not valid."""
    return Error(401, "authentication_error", "invalid x-api-key")


def forbidden() -> Error:
    """403: the key may not do this."""
    message = "Your API key does not have permission to use the specified resource."
    return Error(403, "permission_error", message)


def unknown_model(model: str = "unknown") -> Error:
    """404: there is no such model."""
    return Error(404, "not_found_error", f"model: {model}")


def request_too_large() -> Error:
    """413."""
    message = "Request exceeds the maximum allowed number of bytes."
    return Error(413, "request_too_large", message)


def bad_request(message: str = "messages: invalid") -> Error:
    """400."""
    return Error(400, "invalid_request_error", message)


def prompt_too_long(tokens: int = 250_000, limit: int = 200_000) -> Error:
    """400 for a prompt that the model's context does not hold."""
    return bad_request(f"prompt is too long: {tokens} tokens > {limit} maximum")
