"""The part of Prometheus' HTTP API that is used here, as values.

The formats are those of https://prometheus.io/docs/prometheus/latest/querying/api/, and what Grafana, Mimir,
Thanos and VictoriaMetrics make of them: their words for states and health are mapped here. Anything else
is an error, not an empty answer. Long lists are read item by item, so that their length does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from midwatch.errors import ObservationFailed
from midwatch.subjects.http_client import Answer, WebClient
from midwatch.subjects.http_errors import WebFailure
from midwatch.subjects.json_stream import JsonFeed, JsonText, Member, Reading
from midwatch.text import ticket_line

ANSWER_LIMIT = 500_000_000  # bytes; an answer is read only within the timeout
MOST_HELD = 10_000  # alerts before the name of their rule
_HEAD = 300  # bytes of an answer that is not JSON
_ADVICE = ("PromQL info", "PromQL warning")  # promql/annotations of Prometheus
_NEVER = "0001-01-01"  # Go's zero time


class QueryRefused(ObservationFailed):
    """The server answered this request with an error, or with an unusable result."""


class NotPrometheus(ObservationFailed):
    """The server does not speak Prometheus' API."""

    hint = "check that `url` is that of a Prometheus server, and the login"

    def __init__(
        self, message: str, *, hint: str | None = None, status: int = 0
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Sample:
    """One series at one time."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Line:
    """One series over time: pairs of Unix seconds and value."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Remarks:
    """What came with the data: why it may be `incomplete`, and `advice` on the expression, which is no failure."""

    incomplete: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


AlertState = Literal["firing", "pending", "inactive", "unknown"]
_STATES: dict[str, AlertState] = {
    "firing": "firing",
    "alerting": "firing",
    "recovering": "firing",
    "pending": "pending",
    "inactive": "inactive",
    "normal": "inactive",
    "ok": "inactive",
}


@dataclass(frozen=True, slots=True)
class Alert:
    """One instance of an alert, with the labels and annotations that the server filled in."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    state: AlertState
    active_at: str


Health = Literal["ok", "failing", "unevaluated", "nodata", "paused", "other"]
_HEALTHS: dict[str, Health] = {
    "ok": "ok",
    "err": "failing",
    "error": "failing",
    "nodata": "nodata",
    "unknown": "unevaluated",
    "": "unevaluated",
}


@dataclass(frozen=True, slots=True)
class AlertRule:
    """An alerting rule and how its last evaluation went. `duration` and `interval` are seconds."""

    name: str
    group: str
    query: str
    duration: float
    labels: Mapping[str, str]
    health: Health
    error: str
    interval: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """A scrape target."""

    labels: Mapping[str, str]
    health: str
    error: str
    last_scrape: str


class PrometheusApi:
    """Each method is one request. All raise WebFailure, QueryRefused or NotPrometheus.

    A list is passed item by item to `take`. Where the connection breaks within one, what came before counts,
    and the remarks say that it is incomplete.
    """

    def __init__(
        self, web: WebClient, url: str, headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._web = web
        self._base = url.rstrip("/") + "/api/v1/"
        self._headers = headers

    async def query(
        self, expr: str, timeout: float, take: Callable[[Sample], None]
    ) -> Remarks:
        reply = _Reply()
        scalar: list[Any] = []

        def sample(item: Any) -> None:
            found = _sample(item)
            if found is None:
                scalar.append(item)
            else:
                take(found)

        reader = reply.listed("result", sample)
        data, remarks = await self._get(
            "query", {"query": expr}, timeout, reply, reader, "result"
        )
        for found in _shaped(lambda: list(_scalar(data, scalar))):
            take(found)
        return remarks

    async def query_range(
        self,
        expr: str,
        start: float,
        end: float,
        step: float,
        timeout: float,
        keep: Callable[[Line], bool] = lambda line: True,
    ) -> tuple[Line, ...]:
        """Return the series from `start` to `end` (Unix seconds), a point every `step` seconds.

        Those that `keep` does not want are read and not kept.
        """
        params = {
            "query": expr,
            "start": f"{start:.3f}",
            "end": f"{end:.3f}",
            "step": f"{step:.0f}",
        }
        return await self._list("query_range", params, timeout, "result", _line, keep)

    async def alert_rules(
        self, timeout: float, take: Callable[[Alert], None]
    ) -> tuple[tuple[AlertRule, ...], Remarks]:
        """Return the alerting rules, in one request with their alerts so that both have the same time."""
        reply = _Reply()
        rules: list[AlertRule] = []
        reader = _RulesReader(reply, rules, take)
        params = {"type": "alert"}
        _, remarks = await self._get(
            "rules", params, timeout, reply, reader.data, "groups"
        )
        return tuple(rules), remarks

    async def targets(self, timeout: float) -> tuple[Target, ...]:
        params = {"state": "active"}
        return await self._list("targets", params, timeout, "activeTargets", _target)

    async def alertmanagers(self, timeout: float) -> tuple[str, ...]:
        """Return the URLs that the server sends its alerts to."""
        return await self._list(
            "alertmanagers", {}, timeout, "activeAlertmanagers", _url_of
        )

    async def external_labels(self, timeout: float) -> Mapping[str, str]:
        """Return the labels that the server adds to the alerts that it sends."""
        reply = _Reply()
        data, _ = await self._get(
            "status/config", {}, timeout, reply, lambda _: reply.text.value(), "yaml"
        )
        found: Mapping[str, str] = _shaped(lambda: _external_labels(str(data["yaml"])))
        return found

    async def build(self, timeout: float) -> Mapping[str, str]:
        reply = _Reply()
        data, _ = await self._get(
            "status/buildinfo",
            {},
            timeout,
            reply,
            lambda _: reply.text.value(),
            "version",
        )
        found: Mapping[str, str] = _shaped(lambda: _labels(data))
        return found

    async def _list(
        self,
        path: str,
        params: Mapping[str, str],
        timeout: float,
        name: str,
        build: Callable[[Any], Any],
        keep: Callable[[Any], bool] = lambda item: True,
    ) -> tuple[Any, ...]:
        reply = _Reply()
        found: list[Any] = []

        def take(item: Any) -> None:
            if keep(built := build(item)):
                found.append(built)

        reader = reply.listed(name, take)
        await self._get(path, params, timeout, reply, reader, name)
        return tuple(found)

    async def _get(
        self,
        path: str,
        params: Mapping[str, str],
        timeout: float,
        reply: _Reply,
        data: Member,
        required: str,
    ) -> tuple[Any, Remarks]:
        """Return the `data` of an answer, read with the reader `data`; it has the member `required`."""
        feed = JsonFeed(reply.text.object({"data": data}))
        try:
            answer = await self._web.fetch(
                "GET",
                self._base + path,
                params=params,
                headers=self._headers(),
                timeout=timeout,
                limit=ANSWER_LIMIT,
                consume=lambda piece: reply.consume(feed, piece),
            )
        except WebFailure as failure:
            if not reply.items:
                raise
            return {}, Remarks((failure.message,))
        except (KeyError, TypeError, AttributeError, IndexError):
            raise NotPrometheus("the answer does not have Prometheus' form") from None
        if reply.items and not feed.ended and not feed.error:
            size = f"more than {ANSWER_LIMIT // 1_000_000} MB" if answer.cut else ""
            return {}, Remarks((size or "the answer does not end",))
        feed.feed(b"", final=True)
        envelope = feed.result
        if feed.error or envelope.get("status") not in ("success", "error"):
            raise _not_prometheus(answer, reply)
        if envelope["status"] == "error":
            raise _refusal(answer, envelope)
        found = envelope.get("data")
        if not isinstance(found, Mapping) or required not in found:
            raise _not_prometheus(answer, reply)
        return found, _shaped(lambda: _remarks(envelope))


class _Reply:
    """The reading of one answer: its text, its beginning, and how many items of a list it had so far."""

    def __init__(self) -> None:
        self.text = JsonText()
        self.head = b""
        self.items = 0

    def consume(self, feed: JsonFeed, piece: bytes) -> bool:
        """Read a piece; return whether to go on."""
        if len(self.head) < _HEAD:
            self.head += piece[:_HEAD]
        feed.feed(piece)
        return feed.error is None

    def listed(self, name: str, take: Callable[[Any], None]) -> Member:
        """Return a reader for an object with a long list, whose items are passed to `take`."""

        def item() -> Reading[None]:
            take((yield from self.text.value()))
            self.items += 1

        return lambda _: self.text.object({name: lambda _: self.text.array(item)})


class _RulesReader:
    """Reads groups of rules. Their alerts are passed on at once, since a storm of them fits no memory."""

    def __init__(
        self, reply: _Reply, rules: list[AlertRule], take: Callable[[Alert], None]
    ) -> None:
        self._reply, self._text = reply, reply.text
        self._rules, self._take = rules, take

    def data(self, _: object) -> Reading[Any]:
        return self._text.object({"groups": lambda _: self._text.array(self._group)})

    def _group(self) -> Reading[None]:
        found: list[dict[str, Any]] = []

        def rule() -> Reading[None]:
            found.append((yield from self._rule()))

        group = yield from self._text.object(
            {"rules": lambda _: self._text.array(rule)}
        )
        self._rules += [
            _rule(item, group)
            for item in found
            if item.get("type", "alerting") != "recording"
        ]

    def _rule(self) -> Reading[dict[str, Any]]:
        held: list[Any] = []

        def alerts(rule: dict[str, Any]) -> Reading[None]:
            return self._text.array(lambda: self._alert(rule, held))

        before = self._reply.items
        rule = yield from self._text.object({"alerts": alerts})
        if self._reply.items == before and _fires(rule):
            held.append(
                {**rule, "activeAt": ""}
            )  # its state is all that the server tells
        for item in held:
            self._take(_alert(str(rule["name"]), item))
        return rule

    def _alert(self, rule: dict[str, Any], held: list[Any]) -> Reading[None]:
        item = yield from self._text.value()
        self._reply.items += 1
        if "name" in rule:
            self._take(_alert(str(rule["name"]), item))
        elif len(held) < MOST_HELD:
            held.append(item)
        else:
            raise ValueError("the alerts of a rule come before its name")


def _not_prometheus(answer: Answer, reply: _Reply) -> NotPrometheus:
    kind = ticket_line(answer.header("content-type") or "nothing known", 60)
    text = f"status {answer.status} and {kind} instead of Prometheus' JSON"
    text += f" ({why})" if (why := answer.undecoded or answer.malformed) else ""
    if answer.status in range(300, 400) and (to := answer.header("location")):
        text += f", and a redirect to {ticket_line(to.partition('?')[0], 100)}"
    start = reply.head.decode("utf-8", "replace").strip()
    if start and not start.startswith(("<", "{", "[")):
        text += f": {ticket_line(start, 100)}"
    hint = None
    if answer.status in (401, 403):
        hint = _LOGIN
    elif answer.status >= 500:
        hint = "see whether the server, and a proxy before it, are up and ready"
    return NotPrometheus(text, hint=hint, status=answer.status)


_LOGIN = "set `basic_auth`, `bearer_token_file` or `headers` (a tenant: X-Scope-OrgID)"


def _refusal(answer: Answer, envelope: Mapping[str, Any]) -> ObservationFailed:
    kind = ticket_line(str(envelope.get("errorType") or ""), 40)
    message = ticket_line(str(envelope.get("error") or ""), 300)
    parts = (f"the server refused with status {answer.status}", kind, message)
    text = ": ".join(part for part in parts if part)
    if answer.status in (401, 403):
        return NotPrometheus(text, hint=_LOGIN, status=answer.status)
    return QueryRefused(
        text, hint="correct the expression" if kind == "bad_data" else None
    )


def _remarks(envelope: Mapping[str, Any]) -> Remarks:
    """Return the remarks of an answer: advice on the expression is no reason to doubt the data.

    Prometheus up to 2.53 has its infos among the warnings. VictoriaMetrics has `isPartial`. A page of
    groups ends with the token of the next.
    """
    warnings = _texts(envelope.get("warnings"))
    incomplete = [text for text in warnings if not text.startswith(_ADVICE)]
    advice = [text for text in warnings if text.startswith(_ADVICE)]
    if envelope.get("isPartial"):
        incomplete.append("some storage nodes did not answer")
    if envelope["data"].get("groupNextToken"):
        incomplete.append("the server returned the first page only")
    return Remarks(tuple(incomplete), (*advice, *_texts(envelope.get("infos"))))


def _texts(items: Any) -> list[str]:
    return [ticket_line(str(item), 200) for item in list(items or ())[:10]]


def _shaped(build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise NotPrometheus("the answer does not have Prometheus' form") from None


def _sample(item: Any) -> Sample | None:
    """Return the sample of an item of a vector, or None for one that is not an object, as in a scalar."""
    if not isinstance(item, Mapping):
        return None
    if "values" in item or "histograms" in item:
        raise _not_a_vector("matrix")
    if "histogram" in item and "value" not in item:
        raise QueryRefused("the expression returns histograms, not numbers")
    return Sample(_labels(item["metric"]), float(item["value"][1]))


def _scalar(data: Any, items: list[Any]) -> Iterator[Sample]:
    """Yield the sample of a scalar, which is a pair; a vector had its samples before."""
    kind = data.get("resultType", "vector")
    if kind == "scalar":
        yield Sample({}, float(items[1]))
    elif kind != "vector":
        raise _not_a_vector(str(kind))
    elif items:
        raise ValueError("an item of a vector is not an object")


def _not_a_vector(kind: str) -> QueryRefused:
    return QueryRefused(
        f"the expression returns a {ticket_line(kind, 20)}, not one number a series",
        hint="it must be an instant vector or a scalar",
    )


def _line(item: Any) -> Line:
    points = tuple((float(at), float(value)) for at, value in item["values"])
    return Line(_labels(item["metric"]), points)


def _rule(item: Any, group: Mapping[str, Any]) -> AlertRule:
    return AlertRule(
        name=str(item["name"]),
        group=str(group.get("name") or ""),
        query=str(item.get("query") or ""),
        duration=float(item.get("duration") or 0),
        labels=_labels(item.get("labels") or {}),
        health=_health(item),
        error=ticket_line(str(item.get("lastError") or "")),
        interval=float(group.get("interval") or 0),
    )


def _health(item: Any) -> Health:
    """Return how a rule is. vmalert and Grafana report "ok" for one that was never evaluated."""
    if item.get("isPaused"):
        return "paused"
    known = _HEALTHS.get(str(item.get("health") or "").lower(), "other")
    never = str(item.get("lastEvaluation") or "").startswith(_NEVER)
    if known == "ok" and (never or str(item.get("state") or "").lower() == "unknown"):
        return "unevaluated"
    return known


def _fires(rule: Mapping[str, Any]) -> bool:
    words = str(rule.get("state") or "").lower()
    return _STATES.get(words.partition("(")[0].strip()) == "firing"


def _alert(name: str, item: Any) -> Alert:
    words = str(item.get("state") or "").lower()  # such as "Alerting (NoData)"
    return Alert(
        name=name,
        labels=_labels(item.get("labels") or {}),
        annotations=_labels(item.get("annotations") or {}),
        state=_STATES.get(words.partition("(")[0].strip(), "unknown"),
        active_at=str(item.get("activeAt") or ""),
    )


def _target(item: Any) -> Target:
    return Target(
        labels=_labels(item["labels"]),
        health=str(item["health"]),
        error=ticket_line(str(item.get("lastError") or "")),
        last_scrape=str(item.get("lastScrape") or ""),
    )


def _url_of(item: Any) -> str:
    return str(item["url"])


def _external_labels(text: str) -> dict[str, str]:
    """Return the external labels of a configuration, of which only the first section is read: the rest may be long."""
    import yaml

    section = re.match(r"global:\n(?:[ ].*\n?)*", text)
    try:
        found = yaml.safe_load(section[0])["global"] if section else {}
    except yaml.YAMLError:
        raise ValueError from None
    return _labels(found.get("external_labels") or {})


def _labels(item: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in item.items()}
