"""A cluster for tests: an API server in memory, and a kubelet that runs real processes."""

from .apiserver import ApiServer
from .errors import Refused
from .kubelet import ProcessKubelet, of_session
from .pods import (
    ContainerExits,
    ContainerRuns,
    ImagePull,
    InvalidImageName,
    PodOutcomes,
    PodWorker,
    Unschedulable,
)
from .requests import Fault, Faults, Journal, Request, asking

__all__ = [
    "ApiServer",
    "ContainerExits",
    "PodOutcomes",
    "Fault",
    "Faults",
    "ImagePull",
    "InvalidImageName",
    "Journal",
    "PodWorker",
    "ProcessKubelet",
    "Refused",
    "Request",
    "ContainerRuns",
    "Unschedulable",
    "asking",
    "of_session",
]
