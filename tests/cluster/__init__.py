"""The nearest thing to a cluster: an API server in memory, and a kubelet that runs real processes."""

from .apiserver import ApiServer
from .errors import Refused
from .kubelet import ProcessKubelet, of_session
from .pods import (
    Ends,
    Fates,
    ImagePull,
    InvalidImageName,
    PodWorker,
    Stays,
    Unschedulable,
)
from .requests import Fault, Faults, Journal, Request, asking

__all__ = [
    "ApiServer",
    "Ends",
    "Fates",
    "Fault",
    "Faults",
    "ImagePull",
    "InvalidImageName",
    "Journal",
    "PodWorker",
    "ProcessKubelet",
    "Refused",
    "Request",
    "Stays",
    "Unschedulable",
    "asking",
    "of_session",
]
