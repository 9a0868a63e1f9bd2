"""`midwatch check` and `midwatch db`: check what the daemons need, and upgrade the schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from midwatch.cli.app import (
    Edge,
    api_access,
    open_database,
    secrets_of,
)
from midwatch.cli.finding import (
    MARKS,
    SETTINGS,
    SUBJECTS,
    Finding,
    Grade,
    failed,
    ok,
    warning,
)
from midwatch.cli.output import Output
from midwatch.cli.stats import alive_within
from midwatch.cli.tickets import AsJson
from midwatch.errors import MidwatchError, NotFound, SchemaMismatch, SettingsError
from midwatch.model import Key
from midwatch.text import one_line
from midwatch.units import format_count, format_duration

if TYPE_CHECKING:
    from midwatch.agent.links import Links
    from midwatch.monitor.standstill import Standstill
    from midwatch.provider import ApiAccess
    from midwatch.received import PushedAlerts
    from midwatch.redaction import Redactor
    from midwatch.settings import Settings
    from midwatch.store.protocol import Store
    from midwatch.subjects.base import Subject

app = typer.Typer()

_RESOLVE_SECONDS = 2.0  # seconds to wait for the host names of links


@app.command()
def check(context: typer.Context, as_json: AsJson = False) -> None:
    """Check everything that the daemons need: one line each.

    Exit code: 1 if something failed or a subject is down, 2 if the settings are wrong.
    """
    output = Output.standard(context.obj.environ)
    found = asyncio.run(_run(context.obj, output, quiet=as_json))
    if as_json:
        output.json(found)
    if code := max(one.exit_code() for one in found):
        raise typer.Exit(code)


async def _run(edge: Edge, output: Output, *, quiet: bool) -> list[Finding]:
    found = []
    async for finding in findings(edge):
        found.append(finding)
        if not quiet:
            mark, style = MARKS[finding.grade]
            first, *further = finding.lines()
            output.line(f"{mark} {one_line(finding.what)}: {first}", style)
            for line in further:
                output.line(line, style)
            output.stream.flush()
    return found


async def findings(edge: Edge) -> AsyncIterator[Finding]:
    """Run every check. Without readable settings nothing else can be checked."""
    try:
        settings = edge.settings()
    except SettingsError as error:
        yield failed(SETTINGS, error)
        return
    from midwatch.cli.check_changes import around

    yield ok(SETTINGS, format_count(len(settings.subjects), "subject"))
    for finding in _packages(settings):
        yield finding
    for finding in await _database(edge, settings):
        yield finding
    for finding in await _subjects(edge, settings):
        yield finding
    async for finding in around(edge, settings):
        yield finding
    for finding in await _claude(edge, settings):
        yield finding
    for finding in await _telemetry(settings):
        yield finding


def _packages(settings: Settings) -> list[Finding]:
    """Return a finding for each setting whose extra is not installed."""
    targets = settings.notifications.targets if settings.notifications.routes else []
    wanted = (
        ("server.listen", settings.server.listen, "fastapi", "server"),
        ("server.mcp", settings.server.mcp, "mcp", "mcp"),
        ("notifications.routes", targets, "jinja2", "notify"),
        (
            "notifications.targets",
            any(one.slack for one in targets),
            "slack-sdk",
            "notify",
        ),
        (
            "notifications.targets",
            any(one.apprise for one in targets),
            "apprise",
            "notify",
        ),
        (
            "telemetry.endpoint",
            settings.telemetry.endpoint,
            "opentelemetry-sdk",
            "otel",
        ),
        (
            "metrics.port",
            settings.metrics.port is not None,
            "prometheus-client",
            "metrics",
        ),
    )
    return [
        failed("packages", _not_installed(package, path, extra))
        for path, is_set, package, extra in wanted
        if is_set and not _is_installed(package)
    ]


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _not_installed(package: str, path: str, extra: str) -> SettingsError:
    return SettingsError(
        f"the package {package} is not installed",
        path=path,
        hint=f"pip install 'midwatch[{extra}]'",
    )


async def _database(edge: Edge, settings: Settings) -> list[Finding]:
    from midwatch.store.engine import parse_database
    from midwatch.store.schema import REVISION

    try:
        async with open_database(edge) as store:
            daemons = await _daemons(store, settings)
            return [ok("database", f"reachable, schema {REVISION}"), daemons]
    except NotFound as error:
        file = Path(str(parse_database(settings.database).database))
        if file.parent.is_dir():
            return [warning("database", error.one_line())]
        return [failed("database", error)]
    except MidwatchError as error:
        return [failed("database", error)]


async def _daemons(store: Store, settings: Settings) -> Finding:
    """Return the daemons with a recent heartbeat."""
    alive = await store.daemons(alive_within(settings))
    if not alive:
        return warning("daemons", "no daemon is running")
    beats = ", ".join(f"{one.name} ({one.kind})" for one in alive)
    notices = {str(one.info["notice"]) for one in alive if one.info.get("notice")}
    if notices:
        return warning("daemons", f"{beats}; {'; '.join(sorted(notices))}")
    return ok("daemons", beats)


async def _subjects(edge: Edge, settings: Settings) -> Sequence[Finding]:
    from midwatch.agent.links import Links
    from midwatch.received import TakesAlerts
    from midwatch.redaction import Redactor
    from midwatch.subjects.base import build_subjects, dependencies

    if not settings.subjects:
        hint = "name one under `subjects`, such as {name: this-host, kind: host}"
        return [failed("subjects", NotFound("no subject is configured", hint=hint))]
    try:
        subjects = build_subjects(settings.subjects)
    except SettingsError as error:
        return [failed(SUBJECTS, error)]
    known = secrets_of(settings, edge.environ)
    for subject in subjects:
        if isinstance(subject, TakesAlerts):
            subject.read_pushed_from(_Pushed(edge))
    own = [secret for subject in subjects for secret in subject.secrets]
    redactor = Redactor([*known, *own])
    try:
        links = Links(subjects, dependencies(settings.subjects))
        links.refresh()
        checked = await _check_all(subjects, redactor)
        await asyncio.to_thread(links.wait, _RESOLVE_SECONDS)
        acting = await asyncio.gather(*(_acting(one, redactor) for one in subjects))
        able = [one for one in acting if one is not None]
        return [*checked, *able, *_unreached(settings, subjects), *_linked(links)]
    finally:
        for subject in subjects:
            await subject.close()


async def check_entries(
    entries: Sequence[Mapping[str, Any]], environ: Mapping[str, str]
) -> list[Finding]:
    """Check entries of `subjects`, each for itself: its settings, then one observation.

    Args:
        entries: The entries; `${NAME}` stands for a variable of the environment.
        environ: The environment.
    """
    from midwatch.redaction import Redactor
    from midwatch.settings_file import expand
    from midwatch.subjects.base import build_subjects

    async def one(entry: Mapping[str, Any]) -> Finding:
        try:
            (subject,) = build_subjects([expand(dict(entry), environ, "subjects")])
        except SettingsError as error:
            return failed(SUBJECTS, error)
        try:
            return (await _check_all([subject], Redactor(subject.secrets)))[0]
        finally:
            await subject.close()

    return await asyncio.gather(*(one(entry) for entry in entries))


async def _check_all(subjects: Sequence[Subject], redactor: Redactor) -> list[Finding]:
    from midwatch.monitor.standstill import Standstill

    standstill = Standstill()
    standstill.start()
    try:
        return await asyncio.gather(
            *(_check_awake(one, redactor, standstill) for one in subjects)
        )
    finally:
        standstill.stop()


def _unreached(settings: Settings, subjects: Sequence[Subject]) -> list[Finding]:
    """Return a warning for each subject that only pushes can reach, where no server takes them."""
    if settings.server.listen is not None:
        return []
    return [
        warning(
            f"subject {one.name} ({one.kind})",
            "nothing can be pushed to it: set server.listen, and run `midwatch serve` or `midwatch up`",
        )
        for one in subjects
        if one.kind == "alerts"
    ]


class _Pushed:
    """Reads pushed alerts from the database, which is opened for that alone."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def pushed_alerts(self, subject: str) -> PushedAlerts:
        async with open_database(self._edge) as store:
            return await store.pushed_alerts(subject)


def _linked(links: Links) -> list[Finding]:
    """Return what each subject depends on, as far as settings and addresses show it."""
    needs: dict[str, list[str]] = {}
    for link in links.links():
        needs.setdefault(link.subject, []).append(f"{link.on} ({link.why})")
    return [
        ok(f"links of {name}", f"depends on {', '.join(others)}")
        for name, others in needs.items()
    ]


async def _check_awake(
    subject: Subject, redactor: Redactor, standstill: Standstill
) -> Finding:
    """Check the subject again while Midwatch itself stands still meanwhile: then the result is not the subject's."""
    from midwatch.monitor.standstill import MOST_ATTEMPTS

    for attempt in range(1, MOST_ATTEMPTS + 1):
        if attempt == MOST_ATTEMPTS:
            await asyncio.sleep(standstill.settling())
        mark = standstill.mark()
        finding = await _check_subject(subject, redactor)
        if not standstill.spoils(mark, subject.timeout, bad=True):
            return finding
    if standstill.spoils(mark, subject.timeout, bad=finding.grade is not Grade.OK):
        says = f"unknown: {standstill.reason(mark)}"
        return Finding(finding.what, Grade.FAILED, says)
    return finding


async def _check_subject(subject: Subject, redactor: Redactor) -> Finding:
    """Observe the subject once, within its timeout even if its own code ignores it."""
    what = f"subject {subject.name} ({subject.kind})"
    task = asyncio.create_task(_observe(subject), name=f"observe {subject.name}")
    await asyncio.wait({task}, timeout=subject.timeout)
    if not task.done():
        task.cancel()
        return Finding(
            what, Grade.FAILED, f"no answer within {format_duration(subject.timeout)}"
        )
    finding = task.result()
    unseen = tuple(map(redactor.text, finding.not_seen))
    return Finding(what, finding.grade, redactor.text(finding.says), unseen)


async def _acting(subject: Subject, redactor: Redactor) -> Finding | None:
    """Return whether what a person may approve on a subject could be run; None if it allows nothing."""
    from midwatch.subjects.actionable import ProbesActions

    if not isinstance(subject, ProbesActions) or not subject.allowed_actions:
        return None
    what, limit = f"actions of {subject.name}", subject.action_settings.timeout
    try:
        async with asyncio.timeout(limit):
            found = await subject.probe_actions()
    except MidwatchError as error:
        return Finding(what, Grade.FAILED, redactor.text(error.one_line()))
    except TimeoutError:
        return failed(what, MidwatchError(f"no answer within {format_duration(limit)}"))
    return ok(what, f"{', '.join(subject.allowed_actions)}: {redactor.text(found)}")


async def _observe(subject: Subject) -> Finding:
    try:
        observation = await subject.observe({})
    except MidwatchError as error:
        return failed("", error)
    except Exception as error:  # a subject may be a plug-in
        return Finding("", Grade.FAILED, f"{type(error).__name__}: {error}")
    from midwatch.monitor.rules import check as check_rules

    invariants = {one.id: one for one in subject.invariants}
    broken = check_rules(subject.name, invariants, observation, {}, 0.0).broken
    covered = sum(observation.covers(name) for name in invariants)
    text = f"observed; {covered} of {len(invariants)} invariants seen"
    if broken:
        text += f"; broken now: {_names(key.invariant for key in broken)}"
    vital = {one.id for one in invariants.values() if one.vital}
    down = {
        key: one.message
        for one in observation.signals
        if one.invariant in vital
        and (key := Key(subject.name, one.invariant, one.component)) in broken
    }
    if down:
        text = f"{'; '.join(down.values())}; {text}"
    if waiting := "waiting_since" in observation.state:
        text += "; the heartbeat alert of its sender has not been received yet"
    if observation.ignored:
        left_out = (
            f"{name}: {', '.join(parts)}" for name, parts in observation.ignored.items()
        )
        text += f"; ignored by the settings: {'; '.join(left_out)}"
    unseen = tuple(
        _unseen_lines({**observation.unavailable, **observation.unsupported})
    )
    if down or (invariants and not covered and not broken and not waiting):
        return Finding("", Grade.FAILED, text, unseen)
    grade = Grade.WARNING if unseen or broken or waiting else Grade.OK
    return Finding("", grade, text, unseen)


def _unseen_lines(unseen: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each reason why invariants cannot be seen."""
    names: dict[str, list[str]] = {}
    for name, reason in unseen.items():
        names.setdefault(reason, []).append(name)
    for reason, some in names.items():
        yield f"{', '.join(some)}: {reason}"


async def _telemetry(settings: Settings) -> list[Finding]:
    """Send the collector a request without spans, if one is set."""
    endpoint = settings.telemetry.endpoint
    if endpoint is None or not _is_installed("opentelemetry-sdk"):
        return []
    from midwatch.telemetry.otlp import takes_spans

    try:
        takes = await asyncio.to_thread(takes_spans, settings.telemetry)
    except SettingsError as error:
        return [failed("telemetry", error)]
    if takes:
        return [ok("telemetry", f"traces go to {endpoint}")]
    text = f"the collector at {endpoint} takes no traces: they are lost until it does"
    return [warning("telemetry", text)]


def _names(names: Iterable[str]) -> str:
    from collections import Counter

    counted = Counter(names)
    return ", ".join(
        name if count == 1 else f"{name} ×{count}" for name, count in counted.items()
    )


async def _claude(edge: Edge, settings: Settings) -> list[Finding]:
    from midwatch.agent.claude import end_of_life
    from midwatch.pricing import is_known

    model = settings.anthropic.model
    try:
        access = api_access(settings, edge.environ)
    except SettingsError as error:
        return [failed("key", error)]
    found = []
    if access is None:
        text = "none: tickets get first aid only (set ANTHROPIC_API_KEY or anthropic.api_key_file)"
        found.append(warning("key", text))
    else:
        what = "key" if access.provider == "anthropic" else access.provider
        found.append(await _probed(what, access, model))
        if access.provider != "anthropic" and settings.sessions.model != model:
            found.append(await _probed(what, access, settings.sessions.model))
    if end := end_of_life(model):
        found.append(warning("model", f"{model} is not served after {end}"))
    elif not is_known(model):
        text = f"{model} has no listed price: its cost is estimated high"
        found.append(warning("model", text))
    else:
        found.append(ok("model", model))
    return found


async def _probed(what: str, access: ApiAccess, model: str) -> Finding:
    from midwatch.agent.claude import probe

    result = await probe(access, model)
    grade = Grade.OK if result.works else Grade.FAILED
    grade = Grade.WARNING if result.temporary else grade
    text = result.message
    for secret in access.secrets:
        text = text.replace(secret, "***")
    return Finding(what, grade, text)


# ------------------------------------------------------------------ the database's schema

db = typer.Typer(help="Show or upgrade the database's schema.", no_args_is_help=True)
app.add_typer(db, name="db")


@db.command()
def upgrade(context: typer.Context, as_json: AsJson = False) -> None:
    """Upgrade the schema to what this version needs."""
    from midwatch.store.schema import REVISION
    from midwatch.store.upgrade import upgrade_database

    before = asyncio.run(upgrade_database(context.obj.settings().database))
    output = Output.standard(context.obj.environ)
    if as_json:
        output.json({"before": before, "present": REVISION})
    elif before == REVISION:
        output.line(f"the database is at {REVISION} already")
    else:
        output.line(f"the database is at {REVISION} now, before at {before or 'none'}")


@db.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the schema that the database has and the one needed; exit code 1 if they differ."""
    from midwatch.store.schema import REVISION

    present = asyncio.run(_present(context.obj))
    output = Output.standard(context.obj.environ)
    current = present == REVISION
    if as_json:
        output.json({"present": present, "needed": REVISION, "current": current})
    else:
        output.line(f"present: {present or 'none'}")
        output.line(f"needed:  {REVISION}")
    if not current:
        raise SchemaMismatch("the schema is not current")


async def _present(edge: Edge) -> str | None:
    from midwatch.store.engine import missing_file, open_transactions, parse_database
    from midwatch.store.upgrade import present_revision

    url = parse_database(edge.settings().database)
    if missing_file(url):
        return None  # opening it would create it
    transactions = open_transactions(url)
    try:
        return await transactions.run(present_revision)
    finally:
        await transactions.close()
