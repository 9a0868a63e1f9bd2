"""Settings and invariants of the subject kind `host`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from ..model import Invariant, Severity, Unit
from ..settings import Group, SubjectSettings
from ._http_settings import Regex


class ProcessSettings(Group):
    """A process that must run."""

    name: str | None = Field(None, min_length=1, description="Its name, exactly.")
    pattern: Regex | None = Field(
        None,
        min_length=1,
        description="A regular expression found in its command line.",
    )
    min: int = Field(1, ge=1, description="So many of them at least.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.name is None) == (self.pattern is None):
            raise ValueError("give name or pattern, one of the two")
        return self

    @property
    def label(self) -> str:
        return self.name if self.name is not None else f"/{self.pattern}/"


class HostSettings(SubjectSettings):
    """The machine that Midwatch runs on."""

    kind: str = "host"
    mounts: list[Path] = Field(
        default_factory=list,
        description="Mount points to look at; all real file systems when not given.",
    )
    processes: list[ProcessSettings] = Field(default_factory=list)


INVARIANTS = (
    Invariant(
        "disk",
        "File systems have space left",
        "The used share of the space that an ordinary user may fill, by mount point.",
        unit=Unit.RATIO,
        limit=0.9,
    ),
    Invariant(
        "inodes",
        "File systems have inodes left",
        "The used share of the inodes, by mount point. File systems without a fixed number "
        "of inodes have none to run out of.",
        unit=Unit.RATIO,
        limit=0.9,
    ),
    Invariant(
        "memory",
        "Memory is available",
        "The share of memory that programs can still get without swapping.",
        unit=Unit.RATIO,
        limit=0.05,
        above=False,
        hold_for=60.0,
    ),
    Invariant(
        "swap",
        "Swap is not full",
        "The used share of the swap space; a machine without any is well.",
        unit=Unit.RATIO,
        limit=0.9,
        hold_for=60.0,
    ),
    Invariant(
        "load",
        "The load fits the processors",
        "Processes that run or wait for a disk, averaged over five minutes, for each processor.",
        unit=Unit.COUNT,
        limit=4.0,
    ),
    Invariant(
        "process",
        "Processes that must run do run",
        "At least `min` processes of each entry of `processes` run; zombies do not count.",
        severity=Severity.CRITICAL,
    ),
)
