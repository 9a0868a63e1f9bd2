"""First aid for the kinds `host`, `http`, `prometheus` and `command`.

What these subjects see is mostly the symptom: a note names the line that shows it, the first
suspect where the evidence has one, and what to look at next.
"""

from __future__ import annotations

from midwatch.playbooks._host import HostPressure, HostProcess, HostSpace
from midwatch.playbooks._http import (
    HttpAnswer,
    HttpCertificate,
    HttpLatency,
    HttpOutage,
)
from midwatch.playbooks._named import CommandSays, PrometheusAlert
from midwatch.playbooks.base import Playbook

PLAYBOOKS: tuple[Playbook, ...] = (
    HostSpace(),
    HostPressure(),
    HostProcess(),
    HttpOutage(),
    HttpCertificate(),
    HttpAnswer(),
    HttpLatency(),
    PrometheusAlert(),
    CommandSays(),
)
