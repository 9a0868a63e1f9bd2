"""The settings and invariants of the kind `host`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from midwatch.model import Invariant, Severity, Unit
from midwatch.settings import Group, SubjectSettings
from midwatch.subjects.actionable import ActionSettings
from midwatch.subjects.http import Regex

UnitName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,255}$")
]
"""The characters that systemd.unit(5) allows, so that a unit is never an option."""


class ProcessSettings(Group):
    """A process that must run."""

    name: str | None = Field(None, min_length=1, description="Its name, exactly.")
    pattern: Regex | None = Field(
        None,
        min_length=1,
        description="A regular expression found in its command line.",
    )
    min: int = Field(1, ge=1, description="How many must run at least.")
    unit: UnitName | None = Field(
        None,
        description="Its systemd unit, such as nginx.service; by default the one that it ran in when it was last seen.",
    )
    log_files: list[Path] = Field(
        default=[],
        max_length=5,
        description="Its log files, whose last lines are evidence when it does not run; by default those that it "
        "had open when it was last seen.",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.name is None) == (self.pattern is None):
            raise ValueError("give either name or pattern")
        return self

    @property
    def label(self) -> str:
        return self.name if self.name is not None else f"/{self.pattern}/"


class HostActionSettings(ActionSettings):
    """What Midwatch may do to the machine once a person has approved it; nothing by default."""

    allow: list[Literal["restart_unit"]] = Field(
        default=[],
        description="The actions that a person may approve: restart_unit.",
    )
    units: list[UnitName] = Field(
        default=[],
        description="The units that it may restart, such as nginx.service; no others.",
    )
    systemctl: list[Annotated[str, Field(min_length=1)]] = Field(
        ["systemctl"],
        min_length=1,
        max_length=8,
        description="The program with its first arguments, such as [sudo, -n, systemctl]. It is started without a shell.",
    )

    @model_validator(mode="after")
    def _has_units(self) -> Self:
        if self.allow and not self.units:
            raise ValueError("name the units that may be restarted: set actions.units")
        return self


class HostSettings(SubjectSettings):
    """The machine that Midwatch runs on."""

    kind: str = "host"
    mounts: list[Path] = Field(
        default=[],
        description="Mount points to check; by default all file systems that can run full, also NFS, CIFS, FUSE, "
        "tmpfs and overlay. Read-only ones without a block device are left out.",
    )
    processes: list[ProcessSettings] = Field(default=[])
    actions: HostActionSettings = Field(
        HostActionSettings(),
        description="What Midwatch may do to it once a person has approved it.",
    )


INVARIANTS = (
    Invariant(
        "disk",
        "File systems have space left",
        "The used share of the space that an ordinary user may fill, by mount point. A mount that does not "
        "answer is unknown and hides no other; one that is gone keeps its ticket.",
        unit=Unit.RATIO,
        limit=0.9,
        about=("mount", "fstype"),
    ),
    Invariant(
        "inodes",
        "File systems have inodes left",
        "The used share of the inodes, by mount point. File systems without a fixed number "
        "of inodes are not checked.",
        unit=Unit.RATIO,
        limit=0.9,
        about=("mount", "fstype"),
    ),
    Invariant(
        "memory",
        "Memory is available",
        "The share of memory that is available to programs without swapping.",
        unit=Unit.RATIO,
        limit=0.05,
        above=False,
        hold_for=60.0,
    ),
    Invariant(
        "swap",
        "Swap is not full",
        "The used share of the swap space; it holds on a machine without swap.",
        unit=Unit.RATIO,
        limit=0.9,
        hold_for=60.0,
    ),
    Invariant(
        "load",
        "The load fits the processors",
        "Processes that run or wait for a disk, averaged over five minutes, per processor.",
        unit=Unit.COUNT,
        limit=4.0,
    ),
    Invariant(
        "process",
        "Required processes run",
        "At least `min` processes of each entry of `processes` run; zombies do not count. Too few are unknown "
        "where Midwatch may not see the processes of other users (`hidepid`).",
        severity=Severity.CRITICAL,
        about=("process",),
    ),
)
