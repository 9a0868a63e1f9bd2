"""`midwatch subjects …`: list what is watched, and add to it."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from midwatch.cli.app import Edge, use_store
from midwatch.cli.check import check_entries
from midwatch.cli.completion import kind_names
from midwatch.cli.finding import Grade
from midwatch.cli.output import BOLD, DIM, GREEN, YELLOW, Cell, Output
from midwatch.cli.tickets import AsJson
from midwatch.documents import MAX_BYTES
from midwatch.errors import SettingsError
from midwatch.files import read_regular, write_new
from midwatch.settings_edit import entry_line, with_subject
from midwatch.settings_file import DEFAULT_FILE, expand
from midwatch.text import one_line
from midwatch.units import format_duration

app = typer.Typer()


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List the subjects of the settings: kind, unresolved tickets, and when each was last observed."""
    edge: Edge = context.obj
    written = edge.settings().subjects
    found = use_store(edge, lambda store: store.subject_states())
    states = {one.name: one for one in found}
    output = Output.standard(edge.environ)
    rows: list[dict[str, Any]] = []
    for one in written:
        state = states.get(str(one.get("name")))
        rows.append(
            {
                "name": one.get("name"),
                "kind": one.get("kind"),
                "unresolved": sum(state.unresolved.values()) if state else 0,
                "last_observed_at": state.last_good_at if state else None,
            }
        )
    if as_json:
        output.json(rows)
        return
    output.table(
        ("name", "kind", "tickets", "observed"),
        [
            [
                Cell(one_line(str(row["name"]), 100), BOLD),
                Cell(one_line(str(row["kind"]), 60)),
                Cell(str(row["unresolved"]), YELLOW if row["unresolved"] else ""),
                _age(output, row["last_observed_at"]),
            ]
            for row in rows
        ],
        shrink=("name", "kind"),
    )


def _age(output: Output, at: Any) -> Cell:
    if at is None:
        return Cell("never", DIM)
    age = max(0.0, (output.now - at).total_seconds())
    return Cell(f"{format_duration(age)} ago")


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name, such as orders-db.")],
    kind: Annotated[
        str,
        typer.Argument(help="Its kind, such as postgres.", autocompletion=kind_names),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SETTING=VALUE]…",
            help="Its settings; values are YAML, such as dsn='${ORDERS_DSN}' or mounts='[/, /srv]'.",
        ),
    ] = None,
) -> None:
    """Add a subject to the settings file, and observe it once.

    The rest of the file stays as it is. Exit code: 1 if it was added and cannot be observed, 2 if a setting is wrong,
    and nothing was added.
    """
    edge: Edge = context.obj
    entry: dict[str, Any] = {"name": name, "kind": kind}
    for one in settings or ():
        key, value = _setting(one)
        entry[key] = value
    file = _settings_file(edge)
    _check_whole(edge, entry)
    before = _read(file)
    after = with_subject(before, entry)
    try:
        _replace(file, after)
    except OSError as error:
        raise SettingsError(f"cannot write {file}: {error.strerror}") from None
    output = Output.standard(edge.environ)
    output.line(
        f"added to {one_line(str(file), 200)}: {one_line(entry_line(entry), 500)}"
    )
    alone = {key: value for key, value in entry.items() if key != "depends_on"}
    (finding,) = asyncio.run(check_entries([alone], edge.environ))
    style = {Grade.OK: GREEN, Grade.WARNING: YELLOW}.get(finding.grade, YELLOW)
    for line in finding.lines():
        output.line(line, style)
    if finding.grade is Grade.FAILED:
        raise typer.Exit(1)


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise SettingsError(
            f"{one_line(text, 60)!r} is not SETTING=VALUE",
            hint="such as url=http://shop.example/",
        )
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        # Text that is no YAML, such as a DSN with `: `, is meant as it stands.
        return key, value


def _settings_file(edge: Edge) -> Path:
    """Return the file that the settings came from; a symbolic link to it stays one."""
    named = edge.config or edge.environ.get("MIDWATCH_CONFIG") or DEFAULT_FILE
    return Path(named).resolve()


def _check_whole(edge: Edge, entry: dict[str, Any]) -> None:
    """Check the settings with the new subject. Raises SettingsError."""
    from midwatch.subjects.base import build_subjects

    present = edge.settings().subjects
    build_subjects([*present, expand(entry, edge.environ, "subjects")])


def _read(file: Path) -> str:
    try:
        return read_regular(file, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {file}: {error}") from None


def _replace(file: Path, text: str) -> None:
    """Replace the file by one with the same permissions: it may hold secrets. Raises OSError."""
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o600
    new = file.with_name(f".{file.name}.new")
    write_new(new, text.encode(), 0o600, durable=True)
    new.chmod(mode)
    new.replace(file)
