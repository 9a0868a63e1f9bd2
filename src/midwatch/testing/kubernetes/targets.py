"""What a URL asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .access import Ask
from .kinds import Kind, Kinds
from .refusals import Refused

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


@dataclass(frozen=True, slots=True)
class Target:
    """A kind, and where in it. No name: the collection."""

    kind: Kind
    namespace: str
    name: str
    sub: str
    verb: str

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name

    @property
    def resource(self) -> str:
        return f"{self.kind.plural}/{self.sub}" if self.sub else self.kind.plural

    def ask(self, selected: str = "") -> Ask:
        """The question to access control; `selected` is the one name that a list is of."""
        name = self.name or selected
        return Ask(self.verb, self.kind.group, self.resource, self.namespace, name)


def parse(
    kinds: Kinds, method: str, path: str, query: Mapping[str, str]
) -> Target | None:
    """None if the path is not below a version of a group. Raises Refused (404, 405)."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if (
        rest[0] == "namespaces"
        and len(rest) > 2
        and rest[2] not in ("status", "finalize")
    ):
        namespace, rest = rest[1], rest[2:]
    kind = kinds.find(group, version, rest[0])
    if kind is None or len(rest) > 3 or (namespace and not kind.namespaced):
        raise Refused(404, "the server could not find the requested resource")
    name, sub = (*rest[1:], "", "")[:2]
    _check_sub(kind, sub)
    verb = _verb(method, name, query)
    if kind.namespaced and not namespace and (name or verb not in ("list", "watch")):
        raise Refused(
            405, "the server does not allow this method on the requested resource"
        )
    return Target(kind, namespace, name, sub, verb)


def _check_sub(kind: Kind, sub: str) -> None:
    known = {""} | ({"status"} if kind.status else set())
    if kind.resource == ("", "pods"):
        known.add("log")
    if sub not in known:
        raise Refused(404, "the server could not find the requested resource")


def _verb(method: str, name: str, query: Mapping[str, str]) -> str:
    if method == "GET":
        watching = query.get("watch", "").lower() in ("true", "1")
        return "get" if name else "watch" if watching else "list"
    if method == "DELETE":
        return "delete" if name else "deletecollection"
    if method not in _VERBS or (method == "POST") == bool(name):
        raise Refused(
            405, "the server does not allow this method on the requested resource"
        )
    return _VERBS[method]
