"""Routes of the page, and errors as pages, for a browser that asked for one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from midwatch.errors import MidwatchError
from midwatch.server.page.rendering import Pages
from midwatch.server.problems import on_http_error, problem_of, status_of

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
                    if not wants_page(request):
                        raise
                    return error_page(pages, request, error)
                except RequestValidationError as error:
                    if not wants_page(request):
                        raise
                    first = error.errors()[0]
                    name = ".".join(map(str, first["loc"][1:]))
                    return _page(pages, request, 422, f"{name}: {first['msg']}", "")

            return answer

    return APIRouter(include_in_schema=False, route_class=PageRoute)


_OF_PROGRAMS = ("/api/", "/hooks/", "/mcp")


def wants_page(request: Request) -> bool:
    """Return whether a request comes from a person's browser."""
    for_page = "text/html" in request.headers.get("accept", "")
    return for_page and not request.url.path.startswith(_OF_PROGRAMS)


def add_error_pages(app: FastAPI, pages: Pages) -> None:
    """Answer a browser that asks for an address that does not exist with a page, and a program with a problem."""

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if wants_page(request) and not isinstance(error.__cause__, MidwatchError):
            status, detail = error.status_code, "there is no such page"
            return _page(
                pages, request, status, detail if status == 404 else error.detail, ""
            )
        return await on_http_error(request, error)

    app.add_exception_handler(HTTPException, answer)


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
