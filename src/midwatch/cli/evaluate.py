"""`midwatch eval`: run scenarios with real faults and score first aid, evidence and answers."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from midwatch.cli.app import App, Edge, open_app, secrets_of, use_store
from midwatch.cli.output import GREEN, RED, YELLOW, Cell, Output
from midwatch.cli.tickets import AsJson, read_ticket
from midwatch.errors import MidwatchError, NotFound, SettingsError
from midwatch.evaluation import exchange, scoreboard
from midwatch.evaluation.from_ticket import write_scenario
from midwatch.evaluation.run import Opener
from midwatch.evaluation.run import run as run_scenario
from midwatch.evaluation.scenario import EXCHANGE, LIBRARY, Scenario, find
from midwatch.evaluation.score import Grade, Score, totals
from midwatch.evaluation.system import PartMissing
from midwatch.json_shapes import settled
from midwatch.redaction import Redactor
from midwatch.store.protocol import TicketFilter
from midwatch.subjects.base import build_subjects

if TYPE_CHECKING:
    from midwatch.evaluation.exchange import Exchange
    from midwatch.settings import Settings

app = typer.Typer()
_STYLES = {Grade.RIGHT: GREEN, Grade.OPEN: YELLOW, Grade.WRONG: RED}

_MAX_BATCH = 1000  # tickets of one incident that are read

Folders = Annotated[
    list[Path] | None,
    typer.Option("--scenarios", help="A folder of scenarios of your own; repeatable."),
]


@app.command("run")
def run(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME…]", help="Scenarios; all by default."),
    ] = None,
    scenarios: Folders = None,
    report: Annotated[
        Path | None, typer.Option(help="Write the report to this Markdown file.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write each exchange to this folder.")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="Score the recordings in this folder; nothing is run."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Scenarios at the same time.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Run scenarios and score them: first aid always, Claude where there is a key.

    Exit code 1 if something is wrong: a scenario that could not be run, a harmful or wrong answer, a false alarm,
    a right answer that was marked down.
    """
    edge: Edge = context.obj
    chosen = find(names or (), [LIBRARY, *(scenarios or ())])
    if replay is not None and not names:
        chosen = [one for one in chosen if (replay / f"{one.name}.json").is_file()]
        if not chosen:
            raise NotFound(f"there are no recordings of scenarios in {replay}")
    for file in (report, record and record / "recording"):
        _make_folder(file)
    output = Output.standard(edge.environ)
    with open(os.devnull, "w", encoding="utf-8") as log:
        evaluation = _Evaluation(edge, record, replay, jobs, edge.settings(), log)
        scores = asyncio.run(evaluation.run(chosen))
    if report is not None:
        how = "The systems were recorded." if replay else "The systems were live."
        report.write_text(scoreboard.report(chosen, scores, how), encoding="utf-8")
    if as_json:
        output.json(
            {
                "scenarios": [asdict(one) for one in scores],
                "totals": asdict(sums := totals(scores)),
                "missed": scoreboard.missed(sums),
            }
        )
    else:
        _print(output, scores)
    if any(score.bad for score in scores):
        raise typer.Exit(1)


def _make_folder(file: Path | None) -> None:
    """Make the folder of a file that is written once all has run, and was paid for. Raises SettingsError."""
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir() or not os.access(file.parent, os.W_OK):
                raise PermissionError(f"{file} cannot be written")
    except OSError as error:
        raise SettingsError(f"cannot write to {file}: {error}") from None


@app.command("list")
def list_(
    context: typer.Context, scenarios: Folders = None, as_json: AsJson = False
) -> None:
    """List the scenarios."""
    found = find((), [LIBRARY, *(scenarios or ())])
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json(
            [{"name": one.name, "kind": one.kind, "title": one.title} for one in found]
        )
        return
    rows = [(Cell(one.name), Cell(one.kind), Cell(one.title)) for one in found]
    output.table(("name", "kind", "title"), rows, shrink=("title",))


@app.command()
def add(
    context: typer.Context,
    ticket: Annotated[
        int, typer.Option("--from-ticket", help="A ticket that has a diagnosis.")
    ],
    name: Annotated[str, typer.Option(help="Its name; by default ticket-NUMBER.")] = "",
    scenarios: Annotated[Path, typer.Option(help="The folder that gets it.")] = Path(
        "scenarios"
    ),
    as_json: AsJson = False,
) -> None:
    """Write a scenario from a past ticket: its evidence and diagnosis, redacted, to be replayed."""
    edge: Edge = context.obj
    details = use_store(edge, lambda store: read_ticket(store, ticket))
    diagnosis = settled(details.ticket, details.attempts)
    if diagnosis is None or diagnosis.answer is None:
        raise NotFound(
            f"ticket {ticket} has no diagnosis with an answer",
            hint="choose one that `midwatch tickets show` shows with a diagnosis",
        )
    settings = edge.settings()
    subjects = build_subjects(settings.subjects)
    own = [secret for one in subjects for secret in one.secrets]
    query = TicketFilter(batch=diagnosis.batch, limit=_MAX_BATCH)
    found = use_store(edge, lambda store: store.tickets(query))
    tickets = [one for one in found if one.diagnosis_id == diagnosis.id]
    folder = scenarios / (name or f"ticket-{ticket}")
    write_scenario(
        folder,
        tickets or [details.ticket],
        diagnosis,
        {one.name: one.kind for one in subjects},
        Redactor([*secrets_of(settings, edge.environ), *own]),
    )
    output = Output.standard(edge.environ)
    if as_json:
        output.json({"folder": str(folder)})
    else:
        output.line(f"{folder}: check `truth` in its scenario.yaml, then run")
        output.line(f"midwatch eval run {folder.name} --scenarios {scenarios}")


def _print(output: Output, scores: Sequence[Score]) -> None:
    rows = []
    for score in scores:
        colour = _STYLES[scoreboard.style(score)]
        cells = [Cell(text) for text in scoreboard.row(score)]
        rows.append([replace(cells[0], style=colour), *cells[1:]])
    output.table(scoreboard.HEADINGS, rows, shrink=("notes",), drop=("claims",))
    output.line()
    sums = totals(scores)
    output.pairs(scoreboard.summary(sums), indent=33)
    if short := scoreboard.missed(sums):
        output.line(f"\naims missed: {', '.join(short)}", YELLOW)


@dataclass(slots=True)
class _Evaluation:
    """The options of one evaluation. `settings` are the person's own: how Claude is reached, and the day's budget."""

    edge: Edge
    record: Path | None
    replay: Path | None
    jobs: int
    settings: Settings
    log: TextIO
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Alembic, which makes the database, runs once at a time in a process."""
    spent_usd: float = 0.0

    async def run(self, scenarios: Sequence[Scenario]) -> list[Score]:
        """Return the score of each scenario, in their order."""
        turns = asyncio.Semaphore(self.jobs)

        async def scored(scenario: Scenario) -> Score:
            async with turns:
                return await self._score(scenario)

        return list(await asyncio.gather(*map(scored, scenarios)))

    async def _score(self, scenario: Scenario) -> Score:
        try:
            if self.replay is not None:
                made = exchange.read(self.replay / f"{scenario.name}.json")
            elif not scenario.live:
                made = exchange.read(scenario.folder / EXCHANGE)
            else:
                return exchange.score(scenario, await self._live(scenario))
            return exchange.score(scenario, exchange.aid_again(made))
        except PartMissing as error:
            return Score(scenario.name, scenario.kind, "skipped", error.one_line())
        except MidwatchError as error:
            return Score(scenario.name, scenario.kind, "failed", error.one_line())

    async def _live(self, scenario: Scenario) -> Exchange:
        budget = self.settings.agent.daily_budget_usd
        ask = budget is None or self.spent_usd < budget
        with tempfile.TemporaryDirectory(prefix="midwatch-eval-") as name:
            made = await run_scenario(scenario, Path(name), self._opener(), ask)
        self.spent_usd += made.cost_usd
        if self.record is not None:
            exchange.write(made, self.record / f"{scenario.name}.json")
        return made

    def _opener(self) -> Opener:
        """Return what opens the settings of a scenario; of the person's own only how Claude is reached counts."""
        anthropic = self.settings.anthropic.model_dump_json()
        own = {
            name: value
            for name, value in self.edge.environ.items()
            if not name.upper().startswith("MIDWATCH_")
        }

        @asynccontextmanager
        async def opened(file: Path) -> AsyncIterator[App]:
            edge = Edge({**own, "MIDWATCH_ANTHROPIC": anthropic}, file)
            async with AsyncExitStack() as stack:
                async with self.opening:
                    app = await stack.enter_async_context(
                        open_app(edge, self.log, create=True)
                    )
                yield app

        return opened
