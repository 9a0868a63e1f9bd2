"""Routes of the page: an error is a page too, for a browser that asked for one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import Response

from midwatch.errors import MidwatchError
from midwatch.server.page.rendering import Pages
from midwatch.server.problems import problem_of, status_of

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def page_routes(pages: Pages) -> APIRouter:
    """Return a router without routes, on which an error is answered with a page."""

    class PageRoute(APIRoute):
        def get_route_handler(self) -> _Handler:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handle(request)
                except MidwatchError as error:
                    if not _wants_page(request):
                        raise
                    return error_page(pages, request, error)
                except RequestValidationError as error:
                    if not _wants_page(request):
                        raise
                    first = error.errors()[0]
                    name = ".".join(map(str, first["loc"][1:]))
                    return _page(pages, request, 422, f"{name}: {first['msg']}", "")

            return answer

    return APIRouter(include_in_schema=False, route_class=PageRoute)


def _wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


def error_page(pages: Pages, request: Request, error: MidwatchError) -> Response:
    """Return the page for an error, with the status and the headers that a program gets."""
    request.state.error = error.one_line()
    answer = _page(pages, request, status_of(error), error.message, error.hint)
    for name in ("retry-after", "connection"):
        if value := problem_of(error).headers.get(name):
            answer.headers[name] = value
    return answer


def _page(
    pages: Pages, request: Request, status: int, detail: str, hint: str
) -> Response:
    return pages.page(
        request,
        getattr(request.state, "principal", None),
        "error.html",
        "",
        status=status,
        title=HTTPStatus(status).phrase,
        detail=detail,
        hint=hint,
    )
