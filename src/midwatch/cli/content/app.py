"""The Typer that the commands of the content proxy add themselves to."""

from __future__ import annotations

import typer

app = typer.Typer(name="content", no_args_is_help=True)

# The commands add themselves.
from . import serve, token  # noqa: E402, F401
