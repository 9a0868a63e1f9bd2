"""The command line: `midwatch`."""

from __future__ import annotations

import gc
import os
import sys

from midwatch.errors import MidwatchError

TYPE_CHECKING = False  # as in typing, which is slow to import
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> None:
    """Run a command. An error is one line on stderr and a non-zero exit."""
    # Imports and short commands leave few reference cycles. Collecting them costs a fifth of the
    # start, freeing every module one by one a third of it. Daemons turn the collector on.
    gc.disable()
    try:
        try:
            _run()
        finally:
            gc.freeze()
            sys.stdout.flush()
    except MidwatchError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _end_without_reader()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Typer ends with 1
            _end_without_reader()
        raise
    except BaseExceptionGroup as group:
        known = group.subgroup(MidwatchError)
        if known is None:
            raise
        _fail(_first(known))


def _run() -> None:
    """Run the command that the arguments name; a plain list and a plain daemon without the parser of all commands."""
    environ = dict(os.environ)
    if (daemon := _plain_daemon(sys.argv[1:])) is not None:
        import asyncio
        from pathlib import Path

        from midwatch.cli.app import Edge
        from midwatch.cli.running import DAEMONS

        name, config = daemon
        edge = Edge(environ, None if config is None else Path(config))
        asyncio.run(DAEMONS[name](edge))
        return
    if sys.argv[1:3] == ["tickets", "list"]:
        from midwatch.cli.ticket_list import list_tickets, plain_list

        shown = plain_list(sys.argv[3:])
        if shown is not None:
            from midwatch.cli.app import Edge

            list_tickets(Edge(environ, None), shown)
            return
    from midwatch.cli.command_table import app

    app(obj=environ)


def _plain_daemon(arguments: list[str]) -> tuple[str, str | None] | None:
    """Return the daemon that the arguments name, and its settings file; None where that takes the whole parser."""
    config = None
    if arguments[:1] in (["--config"], ["-c"]):
        config, arguments = "".join(arguments[1:2]), arguments[2:]
        if not config or config.startswith("-"):
            return None
    plain = arguments in (["monitor"], ["agent"], ["up"], ["serve"])
    return (arguments[0], config) if plain else None


def _end_without_reader() -> NoReturn:
    """End as the signal SIGPIPE would: the reader of the output has gone."""
    # Python would complain at its exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)


def _first(group: BaseExceptionGroup[MidwatchError]) -> MidwatchError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _fail(error: MidwatchError) -> NoReturn:
    print(f"midwatch: {error.one_line()}", file=sys.stderr)
    sys.exit(error.command_exit_code)
