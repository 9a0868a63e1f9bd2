"""How the scripted API answers what no rule speaks about, as the real one would."""

from __future__ import annotations

from typing import Any

from .errors import Error, bad_request, request_too_large
from .exchange import Exchange, Reply
from .requests import Request

_KEYS = ("x-api-key", "authorization")


class Json:
    """A JSON value with status 200."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    async def send(self, exchange: Exchange) -> None:
        await exchange.send_json(200, self._value)


def objection(request: Request, *, too_large: bool) -> Reply | None:
    """Why the real API would not take the request, whatever the script says; None if it would."""
    if not request.path.startswith("/v1/"):
        return None
    if not any(name in request.headers for name in _KEYS):
        return Error(401, "authentication_error", "x-api-key header is required")
    if too_large:
        return request_too_large()
    if request.path not in ("/v1/messages", "/v1/messages/count_tokens"):
        return None
    if request.method != "POST":
        return Error(405, "invalid_request_error", "Method Not Allowed")
    return _objection_to_body(request.body, whole=request.is_call)


def _objection_to_body(body: Any, *, whole: bool) -> Error | None:
    if not body:
        return bad_request("The request body is not valid JSON")
    for name in ("model", "max_tokens", "messages"):
        if name not in body and (whole or name != "max_tokens"):
            return bad_request(f"{name}: Field required")
    messages = body["messages"]
    if not isinstance(messages, list) or not messages:
        return bad_request("messages: at least one message is required")
    return None


def standard(request: Request, default: Reply) -> Reply:
    """The reply where no rule fits."""
    if request.is_call:
        return default
    if request.path == "/v1/messages/count_tokens":
        return Json({"input_tokens": len(request.prompt) // 4 + 1})
    if request.method in ("GET", "HEAD"):
        if request.path == "/":
            return Json({})
        if request.path == "/v1/models":
            return Json({"data": [], "has_more": False})
        if request.path.startswith("/v1/models/"):
            return Json(_model(request.path.removeprefix("/v1/models/")))
    return Error(404, "not_found_error", "Not found")


def _model(name: str) -> dict[str, Any]:
    created = "2026-01-01T00:00:00Z"
    return {"type": "model", "id": name, "display_name": name, "created_at": created}
