"""The nearest thing to a cluster: an API server in memory, and a kubelet that runs real processes."""

from .fates import Ends, Fates, ImagePull, InvalidImageName, Stays, Unschedulable
from .faults import Fault, Faults
from .journal import Journal, Request, asking
from .kubelet import ProcessKubelet, of_session
from .pods import PodWorker
from .refusals import Refused
from .server import ApiServer

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
