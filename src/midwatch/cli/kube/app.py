"""The Typer that the commands of Kubernetes add themselves to."""

from __future__ import annotations

import typer

app = typer.Typer(name="kube", no_args_is_help=True)

# The commands add themselves.
from . import demo, operate, resources  # noqa: E402, F401
