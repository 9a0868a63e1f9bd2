"""What is kept of disruption budgets, network policies and the Gateway API (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from midwatch.model import Json
from midwatch.subjects.kubernetes.object_fields import (
    Condition,
    Labels,
    Object,
    conditions_of,
    count_of,
    head_of,
    labels_of,
    map_of,
    maps_of,
    text_of,
)

# ------------------------------------------------------------------ selectors


@dataclass(frozen=True, slots=True)
class Selector:
    """A LabelSelector: each requirement is a label, an operator (In, NotIn, Exists, DoesNotExist) and values."""

    requirements: tuple[tuple[str, str, tuple[str, ...]], ...]

    def matches(self, labels: Labels) -> bool:
        """Return whether an object with these labels is selected."""
        return all(
            _meets(labels.get(key), operator, values)
            for key, operator, values in self.requirements
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{key} {operator} {' '.join(values)}".strip()
            for key, operator, values in self.requirements
        )


def _meets(value: str | None, operator: str, values: tuple[str, ...]) -> bool:
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    return (value is not None) == (operator == "Exists")


def read_selector(found: object) -> Selector:
    """Return the selector of a spec; an empty one selects everything."""
    body = found if isinstance(found, dict) else {}
    some: list[tuple[str, str, tuple[str, ...]]] = [
        (key, "In", (value,))
        for key, value in labels_of(body.get("matchLabels")).items()
    ]
    for one in maps_of(body, "matchExpressions"):
        values = one.get("values")
        given = tuple(map(str, values)) if isinstance(values, list) else ()
        some.append((text_of(one, "key"), text_of(one, "operator"), given))
    return Selector(tuple(some))


# ------------------------------------------------------------------ policies


@dataclass(slots=True)
class DisruptionBudget(Object):
    """A PodDisruptionBudget: `pods` and `allowed` are those that its controller counts; `observed` as of a Workload."""

    selector: Selector
    pods: int
    healthy: int
    wanted: int
    allowed: int
    observed: bool
    disruption: Condition | None


def read_disruption_budget(body: Json) -> DisruptionBudget:
    status, meta = map_of(body, "status"), map_of(body, "metadata")
    generation = count_of(meta, "generation")
    return DisruptionBudget(
        *head_of(body),
        selector=read_selector(map_of(body, "spec").get("selector")),
        pods=count_of(status, "expectedPods"),
        healthy=count_of(status, "currentHealthy"),
        wanted=count_of(status, "desiredHealthy"),
        allowed=count_of(status, "disruptionsAllowed"),
        observed=0 < generation <= count_of(status, "observedGeneration"),
        disruption=conditions_of(status).get("DisruptionAllowed"),
    )


@dataclass(slots=True)
class NetworkPolicy(Object):
    selector: Selector


def read_network_policy(body: Json) -> NetworkPolicy:
    chosen = map_of(body, "spec").get("podSelector")
    return NetworkPolicy(*head_of(body), selector=read_selector(chosen))


# ------------------------------------------------------------------ the Gateway API (gateway.networking.k8s.io/v1)


@dataclass(slots=True)
class Gateway(Object):
    """A GatewayClass (without a class of its own) or a Gateway."""

    class_name: str
    accepted: Condition | None
    programmed: Condition | None


def read_gateway_class(body: Json) -> Gateway:
    accepted = conditions_of(map_of(body, "status")).get("Accepted")
    return Gateway(*head_of(body), class_name="", accepted=accepted, programmed=None)


def read_gateway(body: Json) -> Gateway:
    found = conditions_of(map_of(body, "status"))
    return Gateway(
        *head_of(body),
        class_name=text_of(map_of(body, "spec"), "gatewayClassName"),
        accepted=found.get("Accepted"),
        programmed=found.get("Programmed"),
    )


@dataclass(slots=True)
class HttpRoute(Object):
    """An HTTPRoute: what each of its parents says of it, and the services of its own namespace that it sends requests to."""

    parents: tuple[tuple[str, Condition | None, Condition | None], ...]
    services: tuple[str, ...]


def read_http_route(body: Json) -> HttpRoute:
    spec, own = map_of(body, "spec"), head_of(body)
    services = [
        text_of(backend, "name")
        for rule in maps_of(spec, "rules")
        for backend in maps_of(rule, "backendRefs")
        if backend.get("kind", "Service") == "Service"
        and not backend.get("group")
        and backend.get("namespace", own[0]) == own[0]
    ]
    parents = []
    for one in maps_of(map_of(body, "status"), "parents"):
        found = conditions_of(one)
        name = text_of(map_of(one, "parentRef"), "name")
        parents.append((name, found.get("Accepted"), found.get("ResolvedRefs")))
    return HttpRoute(
        *own,
        parents=tuple(parents),
        services=tuple(dict.fromkeys(filter(None, services))),
    )
