"""What the server was asked, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Request:
    """`status` is None while it is under way, 0 if it was cut. `resource` may be `pods/log`."""

    number: int
    method: str
    path: str
    query: Mapping[str, str]
    agent: str
    at: datetime
    user: str = ""
    verb: str = ""
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    status: int | None = None
    content_type: str = ""
    body: bytes = field(default=b"", repr=False)


Predicate = Callable[[Request], bool]


def asking(
    verb: str | None = None,
    resource: str | None = None,
    *,
    user: str | None = None,
    name: str | None = None,
    namespace: str | None = None,
) -> Predicate:
    """A predicate over requests: all that is given has to be so. `user` is a part of the name."""

    def test(request: Request) -> bool:
        return (
            (verb is None or request.verb == verb)
            and (resource is None or request.resource == resource)
            and (user is None or user in request.user)
            and (name is None or request.name == name)
            and (namespace is None or request.namespace == namespace)
        )

    return test


class Journal:
    """All requests since the start, or since `clear`. To be read from any thread."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._count = 0

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._requests.values()))

    def __len__(self) -> int:
        return len(self._requests)

    def where(self, predicate: Predicate) -> list[Request]:
        return [request for request in self if predicate(request)]

    def clear(self) -> None:
        self._requests.clear()

    def next_number(self) -> int:
        self._count += 1
        return self._count

    def note(self, request: Request) -> None:
        self._requests[request.number] = request

    def finished(self, number: int, status: int) -> None:
        if number in self._requests:
            self._requests[number] = replace(self._requests[number], status=status)
