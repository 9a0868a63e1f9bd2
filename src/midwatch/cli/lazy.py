"""A group of commands that is imported when one of its commands is named."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command


def add_lazily(app: typer.Typer, name: str, help: str, *modules: str) -> None:
    """Add the group `name` with the commands of each module's Typer `app`, imported when used."""

    class Lazy(TyperGroup):
        def list_commands(self, context: Any) -> list[str]:
            return list(_loaded(modules).list_commands(context))

        def get_command(self, context: Any, name: str) -> Any:
            return _loaded(modules).get_command(context, name)

    group = typer.Typer(name=name, help=help, cls=Lazy, no_args_is_help=True)
    group.callback()(_nothing)
    app.add_typer(group, name=name)


def _nothing() -> None:
    pass


def _loaded(modules: tuple[str, ...]) -> Any:
    group = typer.Typer(no_args_is_help=True)
    group.callback()(_nothing)
    for module in dict.fromkeys(modules):
        group.add_typer(import_module(module).app)
    return get_command(group)
