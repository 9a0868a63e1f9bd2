"""The tool of a URL: requests like that of the subject, in variants. They go to its own addresses only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from midwatch.subjects.http_client import Answer as Response
from midwatch.subjects.http_client import WebClient
from midwatch.subjects.http_errors import WebFailure
from midwatch.subjects.http_evidence import SERVER_TEXT, describe, resolve
from midwatch.subjects.tools import Answer, Arguments, Refused, Tool
from midwatch.text import one_line, ticket_line

_BODY = 64_000  # bytes
_LOCATION = re.compile(r"(?m)^redirects to: (.+)$")


class Probe(Arguments):
    method: Literal["GET", "HEAD"] = Field("GET", description="HEAD gets no body.")
    path: str | None = Field(None, description="One of `probe_paths` of the settings.")
    address: str | None = Field(
        None, description="One of the IP addresses of the host.", max_length=45
    )
    login: bool = Field(True, description="Whether the subject's headers are sent.")


class HttpTools:
    """The tools of one URL.

    Args:
        url: The URL, without user and password.
        host: Its host.
        port: Its port.
        paths: Further paths that may be requested.
        headers: What the subject sends, with its login.
        client: Returns a client that asks TLS for a name.
        limit: Seconds that a request may take.
    """

    def __init__(
        self,
        url: str,
        host: str,
        port: int,
        *,
        paths: Sequence[str],
        headers: Callable[[], Mapping[str, str]],
        client: Callable[[str], WebClient],
        limit: float,
    ) -> None:
        self._url, self._host, self._port = url, host, port
        self._paths, self._headers, self._client = paths, headers, client
        self._limit = limit

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        about = "Request the URL in another way. Redirects are shown, not followed."
        return (Tool("probe", about, Probe, self._probe, self._limit * 1.5 + 1),)

    async def _probe(self, asked: Probe) -> Answer:
        parts = urlsplit(self._url)
        path, query, netloc = parts.path, parts.query, parts.netloc
        if asked.path is not None:
            if asked.path not in self._paths:
                known = ", ".join(self._paths) or "none"
                raise Refused(f"that path is not in `probe_paths`; known: {known}")
            path, _, query = asked.path.partition("?")
        headers = dict(self._headers()) if asked.login else {}
        if asked.address is not None:
            netloc = await self._address(asked.address)
            headers["host"] = parts.netloc
        url = urlunsplit((parts.scheme, netloc, path, query, ""))
        shown = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        command = f"{asked.method} {shown}"
        command += f" at {asked.address}" if asked.address else ""
        command += "" if asked.login else " without the subject's headers"
        web = self._client(self._host if asked.address else "")
        try:
            found = await web.fetch(
                asked.method, url, timeout=self._limit, limit=_BODY, headers=headers
            )
            text = _described(found)
        except WebFailure as failure:
            # That it fails is what was asked.
            text = f"failed: {failure.cause}: {failure.message}"
        finally:
            await web.close()
        return Answer(command, text, reported=(*SERVER_TEXT, _LOCATION))

    async def _address(self, written: str) -> str:
        """Return one of the addresses of the host as the place of a URL."""
        try:
            wanted = ipaddress.ip_address(written)
        except ValueError:
            raise Refused("the address is not an IP address") from None
        lines = (await resolve(self._host, self._port, self._limit / 2)).splitlines()
        known = [line.rpartition(" ")[2] for line in lines]
        if str(wanted) not in known:
            shown = one_line(", ".join(known), 200)
            raise Refused(f"the host has no such address; it has {shown}")
        literal = f"[{wanted}]" if wanted.version == 6 else str(wanted)
        return f"{literal}:{self._port}"


def _described(found: Response) -> str:
    """Return the response, and where it redirects to, without the query: that may be a secret."""
    text = describe(found, found.host)
    if location := found.header("location"):
        where = ticket_line(location.partition("?")[0], 200)
        return f"redirects to: {where}\n{text}"
    return text
