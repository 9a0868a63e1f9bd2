"""Requests to the API of a forge: one host, a time limit each, conditional, and errors that say what to do.

The token goes to the address of the API alone: no redirect is followed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from midwatch.cookies import no_cookies
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Json
from midwatch.pull_requests.forge import ForgeLimited, ForgeRefused, ForgeUnreachable
from midwatch.text import one_line

if TYPE_CHECKING:
    import httpx2

_MOST_READ = 8_000_000
"""Bytes of an answer."""
_MOST_PAGES = 10
_SECONDARY = 60.0
"""Seconds to wait where a forge names none:
https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit"""
_LONGEST_WAIT = 3600.0
_RESERVE = 50
"""Requests of a limit that are left to others: people and programs may use the same token."""
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*rel="?next"?')
_PAGE = re.compile(r"[?&]page=(\d{1,6})(?:&|$)")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its headers in lower case, and its JSON; None without a body that is JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def says(self) -> str:
        """The forge's own words."""
        return one_line(" ".join(_texts(self.body)), 300)


def _texts(body: Any) -> list[str]:
    """Return the texts of an error of GitHub or GitLab: message, error, and those of its details."""
    if isinstance(body, str):
        return [body]
    if isinstance(body, list):
        return [text for one in body for text in _texts(one)]
    if isinstance(body, dict):
        names = ("message", "error", "error_description", "errors", "field", "code")
        return [text for name in names for text in _texts(body.get(name))]
    return []


class ForgeClient:
    """Sends requests to one forge.

    Args:
        api: The URL of the API.
        headers: The headers of every request, with the token.
        scope: Returns what the token needs for a request, by the answer that refused it.
        timeout: Seconds that one request may take as a whole.
        clock: The source of time.
    """

    def __init__(
        self,
        api: str,
        headers: Mapping[str, str],
        scope: Callable[[Answer], str],
        timeout: float,
        clock: Clock | None = None,
    ) -> None:
        self._api = api.rstrip("/")
        self._headers = {"User-Agent": "midwatch", **headers}
        self._scope = scope
        self._timeout = timeout
        self._clock = clock or SystemClock()
        self._client: httpx2.AsyncClient | None = None
        self._rest_until = 0.0

    def resting(self) -> float:
        """Return the seconds for which only what a person waits for is to be asked; 0 if all may be."""
        return max(0.0, self._rest_until - self._clock.monotonic())

    async def get(self, path: str, **query: str | int) -> Any:
        """Return a document. Raises ForgeRefused, ForgeLimited and ForgeUnreachable."""
        return self._checked(await self.ask("GET", path, query=query)).body

    async def find(self, path: str, **query: str | int) -> Any:
        """Return a document; None if there is none."""
        answer = await self.ask("GET", path, query=query)
        return None if answer.status == 404 else self._checked(answer).body

    async def pages(self, path: str, **query: str | int) -> AsyncIterator[Any]:
        """Yield the pages of a list."""
        page: int | None = 1
        while page is not None and page <= _MOST_PAGES:
            answer = self._checked(
                await self.ask("GET", path, query={**query, "page": page})
            )
            yield answer.body
            page = _next_page(answer.headers, page)

    async def look(
        self, seen: Json, read: Callable[[Any], Any], path: str, **query: str | int
    ) -> Any:
        """Return what `read` makes of a document, or made of it before if it did not change.

        Args:
            seen: What earlier looks left, by path; changed.
            read: Returns JSON.
            path: The path.
            query: The query.
        """
        known = seen.get(path)
        tag = known.get("etag") if isinstance(known, dict) else None
        answer = await self.ask("GET", path, query=query, tag=tag)
        if answer.status == 304 and isinstance(known, dict):
            return known.get("value")
        value = read(self._checked(answer).body)
        seen[path] = {"etag": answer.headers.get("etag"), "value": value}
        return value

    async def send(self, method: str, path: str, document: Json) -> Answer:
        """Send a document and return the answer, also one that refuses it with 400, 409 or 422."""
        answer = await self.ask(method, path, document=document)
        return answer if answer.status in (400, 409, 422) else self._checked(answer)

    async def change(self, method: str, path: str, document: Json) -> None:
        """Send a document. Raises ForgeRefused, ForgeLimited and ForgeUnreachable."""
        self._checked(await self.ask(method, path, document=document))

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        document: Json | None = None,
        tag: str | None = None,
    ) -> Answer:
        """Return the answer to one request, of any status. Raises ForgeUnreachable."""
        import httpx2

        if self._client is None:
            self._client = httpx2.AsyncClient(
                timeout=self._timeout,
                follow_redirects=False,
                headers=self._headers,
                cookies=no_cookies(),
            )
        headers = {} if tag is None else {"If-None-Match": tag}
        try:
            async with asyncio.timeout(self._timeout):
                async with self._client.stream(
                    method,
                    self._api + path,
                    params=query or None,
                    json=document,
                    headers=headers,
                ) as response:
                    body = b""
                    async for part in response.aiter_bytes():
                        body += part
                        if len(body) > _MOST_READ:
                            raise ForgeUnreachable(
                                f"{self._api} sent more than {_MOST_READ} bytes"
                            )
        except (TimeoutError, httpx2.TimeoutException):
            raise ForgeUnreachable(
                f"{self._api} did not answer within {self._timeout:g} s"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            why = one_line(str(error)) or type(error).__name__
            raise ForgeUnreachable(f"{self._api} cannot be reached: {why}") from None
        answer = Answer(response.status_code, dict(response.headers), _json(body))
        self._count(answer)
        return answer

    def _count(self, answer: Answer) -> None:
        """Rest when the limit is nearly used up."""
        left = _number(answer.headers, "x-ratelimit-remaining", "ratelimit-remaining")
        if left is not None and left < _RESERVE and answer.status != 304:
            most = _number(answer.headers, "x-ratelimit-limit", "ratelimit-limit")
            if most is None or left < most / 2:
                self._rest(self._until_reset(answer) or _SECONDARY)

    def _rest(self, seconds: float) -> None:
        self._rest_until = max(self._rest_until, self._clock.monotonic() + seconds)

    def _until_reset(self, answer: Answer) -> float | None:
        at = _number(answer.headers, "x-ratelimit-reset", "ratelimit-reset")
        if at is None:
            return None
        return min(max(at - self._clock.now().timestamp(), 1.0), _LONGEST_WAIT)

    def _checked(self, answer: Answer) -> Answer:
        if 200 <= answer.status < 300:
            if answer.body is None and answer.status != 204:
                raise ForgeUnreachable(
                    f"{self._api} answered {answer.status} without JSON",
                    hint="check the setting `forges`: `api` is the URL of the API",
                )
            return answer
        self._refuse(answer)

    def _refuse(self, answer: Answer) -> NoReturn:
        status, says = answer.status, answer.says
        where = f"{self._api} answered {status}{says and f': {says}'}"
        limited = status == 429 or (status == 403 and _is_limit(answer))
        if limited:
            seconds = _number(answer.headers, "retry-after")
            wait = min(
                self._until_reset(answer) or _SECONDARY if seconds is None else seconds,
                _LONGEST_WAIT,
            )
            self._rest(wait)
            raise ForgeLimited(where, retry_after=wait)
        if status >= 500 or status == 408:
            raise ForgeUnreachable(where)
        if 300 <= status < 400:
            raise ForgeRefused(
                f"{where}; redirects are not followed",
                hint="the repository has moved: write its present URL into the settings",
            )
        if status == 401:
            raise ForgeRefused(where, hint="the token is wrong or has ended: renew it")
        if status in (403, 404):
            raise ForgeRefused(where, hint=self._scope(answer))
        raise ForgeRefused(where)

    def refuse(self, answer: Answer) -> NoReturn:
        """Raise the error of an answer that `send` returned."""
        self._refuse(answer)

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


def _is_limit(answer: Answer) -> bool:
    headers = answer.headers
    return (
        "retry-after" in headers
        or headers.get("x-ratelimit-remaining") == "0"
        or "rate limit" in answer.says.lower()
    )


def _number(headers: Mapping[str, str], *names: str) -> float | None:
    for name in names:
        value = headers.get(name, "").strip()
        if value.isascii() and value.isdecimal():
            return float(value[:15])
    return None


def _next_page(headers: Mapping[str, str], page: int) -> int | None:
    """Return the number of the next page. Its address is not used: it may be anywhere."""
    if (number := _number(headers, "x-next-page")) is not None:
        return int(number) if number > page else None
    link = _NEXT.search(headers.get("link", ""))
    found = _PAGE.search(link[1]) if link else None
    return int(found[1]) if found and int(found[1]) > page else None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None
