"""A pod whose environment is wrong says so where people look: in the resource."""

from __future__ import annotations

import contextlib

from midwatch.errors import MidwatchError, SettingsError
from midwatch.kube.pod.task import Identity
from midwatch.kube.statuses import merged, phase_changes, phase_conditions
from midwatch.kube.writer import StatusCluster
from midwatch.lifecycle import Clock, SystemClock
from midwatch.model import Json
from midwatch.session.events import Phase

REFUSE_WITHIN = 20.0
"""Seconds of tries; the exit code and the pod's log say it as well."""


async def refuse(
    identity: Identity,
    cluster: StatusCluster,
    error: SettingsError,
    clock: Clock | None = None,
) -> None:
    """Make the session Failed, if the resource can be reached."""
    clock = clock or SystemClock()
    target, story = identity.target, ("BadEnvironment", error.line())
    changes = phase_changes(Phase.FAILED, *story)
    conditions = phase_conditions(Phase.FAILED, *story)

    def propose(body: Json) -> Json | None:
        return merged(body, target.writer, changes, conditions, clock.now())

    with contextlib.suppress(MidwatchError):  # exit code 2 has to do then
        await cluster.write_status(
            target.namespace, target.name, propose, give_up_after=REFUSE_WITHIN
        )
