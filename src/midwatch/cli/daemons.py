"""`midwatch monitor`, `agent`, `serve` and `up` run daemons; `midwatch health` asks one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from midwatch.cli.app import Edge
from midwatch.cli.running import run_agent, run_monitor, run_serve, run_up
from midwatch.errors import PermanentError, TemporaryError
from midwatch.text import one_line

if TYPE_CHECKING:
    from midwatch.settings import Settings

app = typer.Typer()

Once = Annotated[bool, typer.Option("--once", help="Run one cycle, then exit.")]


@app.command()
def monitor(context: typer.Context, once: Once = False) -> None:
    """Run the monitor: open a ticket when an invariant breaks, resolve it when it holds again."""
    asyncio.run(run_monitor(context.obj, once))


@app.command()
def agent(context: typer.Context, once: Once = False) -> None:
    """Run the agent: diagnose queued tickets, with evidence that is checked."""
    if reason := asyncio.run(run_agent(context.obj, once)):
        print(f"midwatch: not diagnosing: {reason}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def up(context: typer.Context) -> None:
    """Run monitor, agent and schedules in one process, and the server if `server.listen` is set."""
    asyncio.run(run_up(context.obj))


@app.command()
def serve(context: typer.Context) -> None:
    """Serve the page, the API, MCP and the addresses for alerts at `server.listen`, until SIGTERM."""
    asyncio.run(run_serve(context.obj))


# ------------------------------------------------------------------ health

SECONDS = 5.0
"""Timeout of the request: a loop that hangs may delay the answer as well."""
_FIRST_PROCESS = Path("/proc/1/cmdline")
_DAEMONS = {
    ("monitor",): "metrics",
    ("agent",): "metrics",
    ("up",): "metrics",
    ("serve",): "server",
    ("kube", "operator"): "operator",
    ("content", "serve"): "content",
}
"""Commands that serve `/healthz`, and the group of settings that has the address."""
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class Unhealthy(TemporaryError):
    """A daemon is not healthy, or does not answer."""

    hint = "see its log; it answers 200 while all its loops run"


class NoDaemon(PermanentError):
    """The command is not one of a daemon."""

    hint = "name the command of a daemon, such as `midwatch health monitor`"


@app.command()
def health(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(help="The daemon's command; without it, that of process 1."),
    ] = None,
) -> None:
    """Check the health of a daemon: `monitor`, `agent`, `up`, `serve`, `kube operator` or `content serve`.

    A container engine runs this inside the daemon's container.
    """
    edge: Edge = context.obj
    arguments = command or of_midwatch(_first_process())
    daemon = daemon_in(arguments)
    if daemon is None and command:
        raise NoDaemon(f"{' '.join(command)!r} is not a daemon")
    if daemon is None:
        typer.echo("process 1 is not a daemon: it is healthy while it runs")
        return
    if not command and (config := config_in(arguments)) is not None:
        edge = replace(edge, config=config)
    name, group = " ".join(daemon), _DAEMONS[daemon]
    settings = edge.settings()
    address = _address(settings, group)
    if address is None:
        setting = "listen" if group == "server" else "port"
        typer.echo(f"{name}: unknown, as {group}.{setting} is null")
        return
    tls = group == "server" and settings.server.certificate_file is not None
    notice = _request(name, *address, tls=tls)
    typer.echo(f"{name} is healthy{notice and f'; {notice}'}")


def of_midwatch(words: Sequence[str]) -> Sequence[str]:
    """Return the arguments after `midwatch`; an init or a shell may stand before it."""
    names = [Path(word).name for word in words]
    return words[names.index("midwatch") + 1 :] if "midwatch" in names else ()


def daemon_in(words: Sequence[str]) -> tuple[str, ...] | None:
    """Return the command of a daemon that a command line begins with, after its options."""
    rest = list(words)
    while rest and rest[0].startswith("-"):
        rest = rest[2 if rest[0] in ("--config", "-c") else 1 :]
    for daemon in _DAEMONS:
        if tuple(rest[: len(daemon)]) == daemon:
            return daemon
    return None


def config_in(words: Sequence[str]) -> Path | None:
    """Return the settings file that a command line names."""
    for word, following in pairwise((*words, "")):
        if word in ("--config", "-c"):
            return Path(following)
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _first_process() -> list[str]:
    try:
        data = _FIRST_PROCESS.read_bytes()
    except OSError as error:
        raise NoDaemon(f"cannot read {_FIRST_PROCESS}: {error.strerror}") from None
    # It may be a shell, which has the whole command as one argument.
    return data.decode("utf-8", "replace").replace("\0", " ").split()


def _address(settings: Settings, group: str) -> tuple[str, int] | None:
    """Return host and port of a daemon; None without a port."""
    if group == "server":
        host, port = settings.server.listen or ("", None)
    else:
        chosen = getattr(settings, group)
        host, port = chosen.host, chosen.port
    return None if port is None else (_ANY.get(host, host), port)


def _request(name: str, host: str, port: int, *, tls: bool = False) -> str:
    """Request `/healthz`, and return what it says beside `ok`. Raises Unhealthy."""
    import http.client  # takes 5 ms, which every command would pay
    import ssl

    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    if tls:
        # The certificate is for another name than that of this machine, and nothing secret is sent.
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            host, port, timeout=SECONDS, context=context
        )
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        body = one_line(answer.read(2000).decode("utf-8", "replace")) or answer.reason
    except (OSError, http.client.HTTPException) as error:
        text = getattr(error, "strerror", None) or str(error)
        why = (text or type(error).__name__).lower()
        raise Unhealthy(f"{name} does not answer on {host}:{port}: {why}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Unhealthy(f"{name} is not healthy ({answer.status}): {body}")
    return body.removeprefix("ok").strip() if body.startswith("ok ") else ""
