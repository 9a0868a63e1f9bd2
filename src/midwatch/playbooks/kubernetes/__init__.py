"""First aid for the kind `kubernetes`."""

from midwatch.playbooks.base import Playbook
from midwatch.playbooks.kubernetes.container_failures import (
    container_config,
    crash_loop,
    image_pull,
    out_of_memory,
)
from midwatch.playbooks.kubernetes.foundations import (
    autoscaler,
    claim,
    endpoints,
    ingress_certificate,
    node,
    webhook,
)
from midwatch.playbooks.kubernetes.pods_and_jobs import (
    job,
    pod_waits,
    refused_pods,
    rollout,
    unschedulable,
)
from midwatch.playbooks.kubernetes.policies_and_gateways import (
    disruption_budget,
    gateway,
    unused_policy,
)

PLAYBOOKS: tuple[Playbook, ...] = (
    out_of_memory,
    image_pull,
    container_config,
    crash_loop,
    unschedulable,
    refused_pods,
    claim,
    node,
    webhook,
    ingress_certificate,
    rollout,
    pod_waits,
    job,
    endpoints,
    autoscaler,
    gateway,
    disruption_budget,
    unused_policy,
)
