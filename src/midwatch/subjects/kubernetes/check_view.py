"""What the checks of a cluster look at, and how they say what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from midwatch.model import Invariant, Severity
from midwatch.subjects.kubernetes.cluster_watch import ClusterWatch
from midwatch.subjects.kubernetes.ingress_certificates import IngressCertificates
from midwatch.subjects.kubernetes.object_fields import Object
from midwatch.subjects.kubernetes.workload_problems import Problem

Problems = Iterator[Problem]


@dataclass(frozen=True)
class View:
    """What a check looks at.

    Attributes:
        watch: What is known of the cluster.
        now: Seconds since 1970.
        waits_for_consumer: Whether a storage class binds claims late, by name; None for one that could not be read.
        certificates: What the hosts of ingresses showed; None where that invariant is off.
    """

    watch: ClusterWatch
    now: float
    waits_for_consumer: Callable[[str], bool | None]
    certificates: IngressCertificates | None = None


def problem_of(
    invariant: Invariant,
    one: Object,
    kind: str,
    says: str,
    value: float | None = None,
    severity: Severity | None = None,
    **facts: str | int,
) -> Problem:
    """Return a problem of an object that is watched."""
    return Problem(
        invariant, one, kind, says, value, severity=severity, facts={**facts}
    )
