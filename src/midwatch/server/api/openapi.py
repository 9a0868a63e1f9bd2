"""The OpenAPI document of the server. docs/openapi.json is a copy of it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from midwatch import __version__
from midwatch.model import Json
from midwatch.server.problems import MEDIA_TYPE

_ABOUT = (
    "Tickets, diagnoses and their evidence, sessions, subjects, silences and figures; and the addresses that alerts are"
    " sent to. docs/api.md has examples."
)


def openapi(app: FastAPI) -> Json:
    """Return the document of an application."""
    if app.openapi_schema is None:
        for route in app.routes:
            if isinstance(route, APIRoute):
                route.operation_id = route.operation_id or route.name
        made: Json = get_openapi(
            title="Midwatch",
            version=__version__,
            description=_ABOUT,
            routes=app.routes,
            separate_input_output_schemas=False,
        )
        for operations in made["paths"].values():
            for operation in operations.values():
                _correct(operation)
        made["components"]["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"}
        }
        made["security"] = [{"token": []}]
        app.openapi_schema = made
    return app.openapi_schema


def _correct(operation: dict[str, Any]) -> None:
    """Say of errors that they are problem details alone, and of what can be conditional that 304 has no body."""
    responses = operation["responses"]
    for response in responses.values():
        content = response.get("content", {})
        if MEDIA_TYPE in content:
            content.pop("application/json", None)
    named = {one["name"] for one in operation.get("parameters", ())}
    if "if-none-match" in named:
        responses["304"] = {"description": "The client has it already."}
