"""What is in the image of every container: this machine, and what a Dockerfile would say of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from midwatch.model import Json

PYTHON = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Image:
    """`environment` comes beside a HOME of the pod's own; `entrypoint` and `command` are ENTRYPOINT and CMD."""

    environment: Mapping[str, str]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def argv(self, container: Json) -> list[str]:
        """What is run. A container's own command leaves out the image's CMD as well, as in Kubernetes."""
        if "command" in container:
            return [*container["command"], *container.get("args", ())]
        return [*self.entrypoint, *container.get("args", self.command)]


IMAGE = Image(
    {"PATH": f"{PYTHON}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
    # As our Dockerfile has it, but for tini: `processes` sees to what is left behind.
    ("midwatch",),
    ("--help",),
)
