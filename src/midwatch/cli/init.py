"""`midwatch init`: find what runs on this machine, ask four questions, and write a commented `midwatch.yaml`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from midwatch.cli.check import check_entries
from midwatch.cli.finding import Finding, Grade
from midwatch.cli.found_systems import FoundSystem, find_systems
from midwatch.cli.output import DIM, GREEN, YELLOW, Output
from midwatch.errors import Conflict, SettingsError
from midwatch.files import write_new
from midwatch.settings_edit import entry_line
from midwatch.settings_file import DEFAULT_DATABASE, DEFAULT_FILE
from midwatch.text import one_line

T = TypeVar("T")

app = typer.Typer()

_MOST_TEXT = 300  # characters of why a system cannot be observed
_DEFAULT_BUDGET = "20"
_DEFAULT_PAGE = "127.0.0.1:8470"


@app.command()
def init(
    context: typer.Context,
    file: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write.")
    ] = Path(DEFAULT_FILE),
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the default of each question.")
    ] = False,
) -> None:
    """Find what runs on this machine, ask four questions, and write the settings file.

    What is found is observed once; what cannot be observed is written as a comment, with the reason.
    """
    environ = context.obj.environ
    output = Output.standard(environ)
    if file.exists() or file.is_symlink():
        raise Conflict(
            f"{file} exists already",
            hint="use `midwatch subjects add`, or name another file with --output",
        )
    found, findings = _look(environ, output)
    ask = _Questions(output, yes)
    chosen = ask("1/4  Which should be watched?", "all", _choice(len(found)))
    database = ask("2/4  Where are tickets kept?", DEFAULT_DATABASE, _database)
    budget = ask(
        "3/4  Dollars a day for Claude, 0 for first aid alone?",
        _DEFAULT_BUDGET,
        _dollars,
    )
    listen = ask(
        "4/4  HOST:PORT of the page, or none?",
        _DEFAULT_PAGE if _has_server() else "none",
        _listen,
    )
    text = _settings_text(
        [
            (found[index], findings[index], index in chosen)
            for index in range(len(found))
        ],
        database,
        budget,
        listen,
    )
    try:
        # The address of the database, or what a person adds later, may hold a password.
        write_new(file, text.encode(), 0o600, durable=True)
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from None
    output.line(f"wrote {one_line(str(file), 200)}", GREEN)
    output.line("next: midwatch check, then midwatch up")


def _look(
    environ: Mapping[str, str], output: Output
) -> tuple[list[FoundSystem], list[Finding]]:
    """Return what is found here and what an observation of each says, and print both."""
    from midwatch.subjects.base import kinds

    found = find_systems(environ, kinds())
    output.line("Looking at what runs here …", DIM)
    findings = asyncio.run(check_entries([one.entry for one in found], environ))
    for number, (one, finding) in enumerate(zip(found, findings, strict=True), 1):
        works = finding.grade is not Grade.FAILED
        says = "" if works else f": {one_line(finding.text, _MOST_TEXT)}"
        name, kind = one.entry["name"], one.entry["kind"]
        output.line(
            f"  {number}  {name} ({kind}), {one_line(one.where, 200)}{says}",
            "" if works else YELLOW,
        )
    return found, findings


class _Questions:
    """Asks on the terminal, or reads one line for each question; an empty line is the default."""

    def __init__(self, output: Output, yes: bool) -> None:
        self._output, self._yes = output, yes

    def __call__(self, question: str, default: str, read: Callable[[str], T]) -> T:
        """Return the answer, as `read` makes it; on a terminal a wrong one is asked again.

        Raises:
            SettingsError: `read` refused the answer, or the input ended.
        """
        while True:
            answer = default if self._yes else self._line(question, default)
            try:
                return read(answer.strip() or default)
            except SettingsError as error:
                if self._yes or not sys.stdin.isatty():
                    raise
                self._output.line(error.one_line(), YELLOW)

    def _line(self, question: str, default: str) -> str:
        print(f"{question} [{default}] ", end="", flush=True, file=self._output.stream)
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            self._output.line()
        if not line:
            raise SettingsError(
                "the input ended before the last question; nothing was written",
                hint="use --yes to take the defaults",
            )
        return line


# ------------------------------------------------------------------ answers


def _choice(count: int) -> Callable[[str], frozenset[int]]:
    """Return a reader of numbers such as `1,3`, of `all` and of `none`; the result counts from 0."""

    def read(answer: str) -> frozenset[int]:
        if answer in ("all", "none"):
            return frozenset(range(count) if answer == "all" else ())
        numbers = answer.replace(",", " ").split()
        chosen = {int(one) - 1 for one in numbers if one.isdecimal() and len(one) < 6}
        if len(chosen) < len(set(numbers)) or not chosen <= set(range(count)):
            raise SettingsError(
                f"{answer!r} is not a choice",
                hint=f"write numbers from 1 to {count}, such as 1,2, or all, or none",
            )
        return frozenset(chosen)

    return read


def _database(answer: str) -> str:
    from midwatch.store.engine import parse_database

    parse_database(answer)
    return answer


def _dollars(answer: str) -> float:
    return float(
        _checked({"agent": {"daily_budget_usd": answer}}).agent.daily_budget_usd
    )


def _listen(answer: str) -> str | None:
    if answer == "none":
        return None
    _checked({"server": {"listen": answer}})
    return answer


def _checked(settings: Mapping[str, Any]) -> Any:
    """Return these settings. Raises SettingsError."""
    from pydantic import ValidationError

    from midwatch.config import explain
    from midwatch.settings import Settings

    try:
        return Settings.model_validate(settings)
    except ValidationError as error:
        raise explain(error, Settings) from None


def _has_server() -> bool:
    from importlib.util import find_spec

    return find_spec("fastapi") is not None


# ------------------------------------------------------------------ the file


def _settings_text(
    systems: Sequence[tuple[FoundSystem, Finding, bool]],
    database: str,
    budget: float,
    listen: str | None,
) -> str:
    """Return the settings file; each system with what was found, and whether it was chosen."""
    server = "none" if listen is None else listen
    lines = [
        "# Settings of Midwatch. docs/settings.md has all of them; `midwatch check` tests them.",
        "# ${NAME} stands for a variable of the environment, so that secrets stay out of this file.",
        "",
        "# Where tickets are kept: a file, or postgresql://USER@HOST/NAME.",
        entry_line({"database": database}).strip("{}"),
        "",
        "# Claude's key comes from ANTHROPIC_API_KEY or anthropic.api_key_file. Without one there is first aid only.",
        "agent:",
        f"  daily_budget_usd: {budget:g}",
        "",
        "# The page, the API and the addresses for alerts, served by `midwatch up`.",
        "server:" if listen else "# server:",
        f"  listen: {server}" if listen else f"#   listen: {_DEFAULT_PAGE}",
        "",
        "# What is watched. `midwatch invariants` lists what is checked, with limits that can be changed here.",
    ]
    active = [one for one in systems if one[2] and one[1].grade is not Grade.FAILED]
    lines.append("subjects:" if active else "subjects: []")
    for one, finding, chosen in systems:
        works = finding.grade is not Grade.FAILED
        shown = "  " if works and chosen else "  # "
        where = f"  # {one.where}:" if works else f"  # {one.where} cannot be observed:"
        lines.append(
            where if works else f"{where} {one_line(finding.text, _MOST_TEXT)}"
        )
        lines.append(f"{shown}- {entry_line(one.entry)}")
        lines += [f"  #   {text}" for text in one.advice]
    return "\n".join(lines) + "\n"
