"""The subject kind `kubernetes`: the workloads of a cluster, watched with a role that only reads."""

from midwatch.subjects.kubernetes.subject import KubernetesSubject

__all__ = ["KubernetesSubject"]
