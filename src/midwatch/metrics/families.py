"""What a metric is called and means, and one value of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric, with the values of its labels in their order."""

    family: Family
    value: float
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A metric. `labels` take values of a bounded set only: names from the settings, words of ours."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()

    def __call__(self, value: float, *labels: str) -> Sample:
        return Sample(self, value, labels)


Read = Callable[[], Iterable[Sample]]
"""The values as they are now."""


def code_label(status: int) -> str:
    """An HTTP status as a label: the common ones as they are, the others by their hundred."""
    return str(status) if status in _CODES else f"{min(max(status // 100, 0), 9)}xx"


_CODES = frozenset(
    (400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415, 422, 428, 429)
    + (499, 500, 502, 503, 504, 507)
)
