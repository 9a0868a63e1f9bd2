"""Which restarts and roll-backs a diagnosis proves: those that its commands name and its evidence shows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from midwatch.model import Evidence, Key, Origin, Severity, Ticket, TicketStatus
from midwatch.subjects.actionable import Findings, Quote
from midwatch.subjects.kubernetes.settings import KubernetesSettings
from midwatch.subjects.kubernetes.workload_proposals import propose

ROLLED_OUT = datetime(2026, 11, 29, 13, 50, tzinfo=UTC)
NAME = "shop/Deployment/checkout"
HISTORY = """Deployment checkout: uid 0a1b-2c, created 2026-10-01T08:00:00Z, generation 7
revision 7: checkout-7f9c, created 2026-11-29T13:50:00Z, 0 of 2 pods ready, image shop:7
revision 6: checkout-6d8b, created 2026-11-20T09:00:00Z, 0 of 0 pods ready, image shop:6
revision 4: checkout-4a2e, created 2026-11-01T09:00:00Z, 0 of 0 pods ready, image shop:4
from revision 6 to 7:
changed spec.containers[app].image: shop:6 -> shop:7
revision 9: checkout-6d8b, created 2026-11-29T13:59:00Z"""
SETTINGS = KubernetesSettings.model_validate(
    {
        "name": "cluster",
        "kubeconfig": "/kube",
        "actions": {
            "allow": ["restart_workload"],
            "workloads": ["shop/*/checkout*", "*/DaemonSet/agent"],
        },
    }
)


@dataclass
class Case:
    """A diagnosis of a Deployment whose seventh revision crashes."""

    commands: tuple[str, ...] = ("kubectl rollout undo deployment/checkout -n shop",)
    history: str = HISTORY
    pod: str = "checkout-7f9c-x2x4z"
    pods: str = ""
    after: float = 120.0
    invariant: str = "crash_loop"
    quoted: str = "E2"
    source: str = SETTINGS.shown
    origin: Origin = Origin.SYSTEM
    ref: tuple[str, str, str] = ("shop", "Deployment", "checkout")
    settings: KubernetesSettings = field(default=SETTINGS)

    def found(self) -> set[tuple[str, int]]:
        """Return kinds and revisions (0 for a restart) of what is proposed."""
        name = "/".join(self.ref)
        began = ROLLED_OUT + timedelta(seconds=self.after)
        namespace, kind, called = self.ref
        facts = {"namespace": namespace, "kind": kind, "name": called, "pod": self.pod}
        ticket = Ticket(
            id=1,
            key=Key("cluster", self.invariant, name),
            severity=Severity.CRITICAL,
            status=TicketStatus.DIAGNOSED,
            held=False,
            message="it crashes",
            facts={**facts},
            first_seen_at=began,
            opened_at=began,
            last_seen_at=began,
            occurrence_count=1,
            batch=1,
        )
        first = Evidence("E1", f"Pods of {name}", self.source, began, self.pods)
        rollout = replace(
            *(first,),
            id="E2",
            title=f"Rollout history of {name}",
            text=self.history,
            origin=self.origin,
        )
        other = replace(first, id="E3", title="Nodes")
        quotes = (Quote(self.quoted, "changed"),)
        evidence = (first, rollout, other)
        at = began.timestamp()
        findings = Findings(ticket, evidence, quotes, self.commands, at)
        return {
            (one.kind.partition("_")[0], int(one.target.get("to_revision") or 0))
            for one in propose(findings, self.settings)
        }


BACK = {("roll", 6)}
RESTARTED = {("restart", 0)}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("kubectl rollout undo deployment/checkout", BACK),
        ("kubectl -n shop rollout undo deploy checkout --to-revision=4", {("roll", 4)}),
        ("cd x && kubectl rollout undo deployment.apps/checkout # now", BACK),
        ("kubectl rollout restart deployments checkout --namespace shop", RESTARTED),
        ("kubectl rollout undo deployment/checkout --to-revision=0", BACK),
        ("kubectl rollout undo deployment/checkout --to-revision=5", set()),
        ("kubectl rollout undo deployment/checkout --to-revision=9", set()),
        ("kubectl rollout undo deployment/checkout --to-revision=7", set()),
        ("kubectl rollout undo deployment/checkout -n payments", set()),
        ("kubectl rollout undo deployment/other -n shop", set()),
        ("kubectl rollout undo statefulset/checkout", set()),
        ("kubectl rollout restart deployment -n shop", set()),
        ("kubectl rollout restart deployment checkout other", set()),
        ("kubectl rollout status deployment/checkout", set()),
        ("kubectl delete deployment checkout", set()),
        ("echo kubectl-rollout undo deployment/checkout", set()),
        ("kubectl rollout undo 'deployment/checkout", set()),
    ],
)
def test_a_command_names_the_workload(
    command: str, expected: set[tuple[str, int]]
) -> None:
    assert Case((command,)).found() == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"after": -1.0},  # it was broken before the rollout
        {"after": 3601.0},  # long after it
        {"pod": "checkout-6d8b-aaaaa"},  # a pod of the revision before
        {"quoted": "E1"},  # the diagnosis does not quote the rollout
        {"quoted": "E3"},
        {"origin": Origin.REPORTED},
        {"source": "/another/cluster"},
        {"invariant": "job_failed"},
        {"history": HISTORY.replace("uid 0a1b-2c", "uid ?")},
        {"history": HISTORY.replace("2026-11-20T", "2026-12-20T")},  # used before
        {"history": "\n".join(HISTORY.splitlines()[:2])},
        {"history": "no revision of it is kept"},
        {"ref": ("payments", "Deployment", "checkout")},
        {"settings": SETTINGS.model_copy(update={"kubeconfig": None})},
    ],
)
def test_what_is_not_proven_is_not_offered(changes: dict[str, object]) -> None:
    assert not Case(**changes).found()  # type: ignore[arg-type]


def test_a_restart_needs_no_rollout_and_a_pod_names_its_revision() -> None:
    restart = "kubectl rollout restart deploy/checkout"
    assert Case((restart,), after=-9, quoted="E1").found() == RESTARTED
    daemon = Case(
        ("kubectl rollout undo ds/agent",),
        history=HISTORY.replace("Deployment checkout", "DaemonSet agent").replace(
            "checkout-", "agent-"
        ),
        ref=("kube", "DaemonSet", "agent"),
        pod="agent-z9",
    )
    line = "pod agent-z9: Running on n1, ready False, created x, revision "
    assert replace(daemon, pods=f"{line}7f9c").found() == BACK
    assert replace(daemon, pods=f"{line}6d8b").found() == set()
    assert daemon.found() == set()
