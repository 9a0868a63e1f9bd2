"""Actions on a PostgreSQL server that a person approved: cancel or end the session of the evidence, reload the configuration.

A statement acts only on a session that is still the one of the evidence: that is a condition of the statement itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from midwatch.errors import ObservationFailed
from midwatch.model import Evidence, Origin
from midwatch.subjects.actionable import (
    ActionCheck,
    ActionKind,
    ActionResult,
    Findings,
    ProposedAction,
    Quote,
)
from midwatch.subjects.postgres.connection import (
    Connection,
    NotPermitted,
    QueryFailed,
)
from midwatch.subjects.postgres.settings import PostgresSettings
from midwatch.subjects.postgres.sql import moment
from midwatch.subjects.rows import Row, text

CANCEL, TERMINATE, RELOAD = "cancel_backend", "terminate_backend", "reload"
KINDS = (
    ActionKind(CANCEL, "Cancel the statement of a session"),
    ActionKind(TERMINATE, "End a session"),
    ActionKind(RELOAD, "Reload the server's configuration"),
)
_FUNCTIONS = {
    CANCEL: re.compile(r"\bpg_cancel_backend\s*\(", re.IGNORECASE),
    TERMINATE: re.compile(r"\bpg_terminate_backend\s*\(", re.IGNORECASE),
    RELOAD: re.compile(r"\bpg_reload_conf\s*\(", re.IGNORECASE),
}
_PID = re.compile(
    r"\bpg_(?:cancel|terminate)_backend\s*\(\s*(\d{1,9})\b|\bpid\s*=\s*(\d{1,9})\b",
    re.IGNORECASE,
)

# ------------------------------------------------------------------ what is proposed (pure)

_TITLES = ("Blocking tree", "Sessions that are active")
# Up to the name of the user; behind it are texts that clients chose.
_SESSION = re.compile(
    r"(?P<root>root: blocks \d[\d,]* sessions?; )?pid (?P<pid>\d+): (?P<state>[^,]*)"
    r"(?:, transaction open for [^,]*? since (?P<xact_start>[0-9T:.-]+Z)(?:, statement since (?P<query_start>[0-9T:.-]+Z))?)?"
    r"(?:, waits on [^,]+/[^,]+)?, connected since (?P<backend_start>[0-9T:.-]+Z), user (?P<user>.*)$"
)
_BEHIND_USER = re.compile(r", (?:application|database) ")
_CHOSEN_BY_CLIENTS = re.compile(r", (?:user|application|database|client) ")


def propose(findings: Findings) -> Iterator[ProposedAction]:
    """Yield the actions that the diagnosis recommends on a session that its quotes name, and a reload."""
    named = set(_named(findings.quotes))
    sessions = dict(_sessions(findings.evidence))
    for kind in (CANCEL, TERMINATE):
        for command in findings.commands:
            if not _FUNCTIONS[kind].search(command):
                continue
            for found in _PID.finditer(command):
                pid = int(found[1] or found[2])
                if pid not in named or pid not in sessions:
                    continue
                evidence_id, target = sessions[pid]
                if kind == TERMINATE or target["query_start"]:
                    yield _on_session(kind, evidence_id, target)
    if any(_FUNCTIONS[RELOAD].search(command) for command in findings.commands):
        yield ProposedAction(
            RELOAD,
            {"not_since": round(findings.since, 3)},
            "reload the server's configuration",
        )


def _named(quotes: Sequence[Quote]) -> Iterator[int]:
    """Yield the pids whose sessions the quotes show; not those in texts that clients chose."""
    for quote in quotes:
        for line in quote.text.splitlines():
            measured = _CHOSEN_BY_CLIENTS.split(line, maxsplit=1)[0]
            for found in re.finditer(r"\bpid (\d{1,9})(?=:)", measured):
                yield int(found[1])


def _sessions(
    evidence: Sequence[Evidence],
) -> Iterator[tuple[int, tuple[str, Mapping[str, str | int | None]]]]:
    """Yield the sessions of clients in the evidence: pid, and the number of the evidence with what identifies it."""
    for piece in evidence:
        if not piece.available or piece.origin is not Origin.SYSTEM:
            continue
        if not piece.title.startswith(_TITLES):
            continue
        for line in piece.text.splitlines():
            if (found := _SESSION.match(line)) is None:
                continue
            pid = int(found["pid"])
            active = found["state"].startswith("active")
            begun = found["query_start"] or (found["xact_start"] if active else None)
            target: dict[str, str | int | None] = {
                "pid": pid,
                "backend_start": found["backend_start"],
                "xact_start": found["xact_start"],
                "query_start": begun,
                "user": _BEHIND_USER.split(found["user"], maxsplit=1)[0],
                "blocks": 1 if found["root"] else 0,
            }
            yield pid, (piece.id, target)


def _on_session(
    kind: str, evidence_id: str, target: Mapping[str, str | int | None]
) -> ProposedAction:
    title = "cancel the statement of" if kind == CANCEL else "end the session"
    what = f"{title} pid {target['pid']}, connected since {target['backend_start']}"
    return ProposedAction(kind, target, what, (evidence_id,))


# ------------------------------------------------------------------ the statements

_IS = f"""
a.pid = %(pid)s AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
AND {moment("a.backend_start")} = %(backend_start)s::text
AND coalesce(a.usename, 'unknown') = %(user)s::text
AND {moment("a.xact_start")} IS NOT DISTINCT FROM %(xact_start)s::text
AND (%(blocks)s::int = 0 OR {{blocks}})"""
_BLOCKS = """EXISTS (SELECT FROM pg_stat_activity w
             WHERE w.wait_event_type = 'Lock' AND a.pid = ANY(pg_blocking_pids(w.pid)))"""
_STILL = _IS.format(blocks=_BLOCKS)
_RUNS = f"a.state = 'active' AND {moment('a.query_start')} = %(query_start)s::text"

_ACT = {
    CANCEL: f"SELECT pg_cancel_backend(a.pid) AS did FROM pg_stat_activity a WHERE {_STILL} AND {_RUNS}",
    TERMINATE: f"SELECT pg_terminate_backend(a.pid, %(wait)s) AS did FROM pg_stat_activity a WHERE {_STILL}",
    RELOAD: "SELECT pg_reload_conf() AS did WHERE pg_conf_load_time() <= to_timestamp(%(not_since)s)",
}
_SEEN = f"""
SELECT a.usename, a.state, a.backend_type, {moment("a.backend_start")} AS backend_start,
       {moment("a.xact_start")} AS xact_start, {moment("a.query_start")} AS query_start, {_BLOCKS} AS blocks
FROM pg_stat_activity a WHERE a.pid = %(pid)s
"""
_MAY = """
SELECT current_user AS role, pg_has_role('pg_signal_backend', 'USAGE') AS signals,
       has_function_privilege('pg_reload_conf()', 'EXECUTE') AS reloads
"""
_LOADED = "SELECT extract(epoch FROM pg_conf_load_time())::float8 AS at"
_SHORTEST_WAIT = 1.0  # seconds that a session gets to end


class PostgresActions:
    """The actions of one server, over connections of the role of `actions.dsn`."""

    def __init__(self, settings: PostgresSettings) -> None:
        chosen = settings.actions
        self._settings = settings.model_copy(
            update={
                "dsn": chosen.dsn or settings.dsn,
                # The statement waits for the end of the session, and ends before the run's time is over.
                "statement_timeout": max(chosen.timeout * 0.6, _SHORTEST_WAIT),
                "connect_timeout": min(settings.connect_timeout, chosen.timeout * 0.3),
            }
        )
        wait = self._settings.statement_timeout * 0.8
        self._wait = {"wait": round(wait * 1000)}

    async def check(self, action: ProposedAction) -> ActionCheck:
        """See `Actionable.check_action`."""
        async with Connection(self._settings) as connection:
            reason, seen = await self._reason(connection, action)
        return ActionCheck(not reason, reason or seen, _shown(action))

    async def probe(self, allow: Sequence[str]) -> str:
        """See `ProbesActions.probe_actions`. `allow` are the kinds that are allowed."""
        async with Connection(self._settings) as connection:
            [row] = await connection.rows(_MAY)
            role, needed = text(row["role"], 64), dict[str, str]()
            if CANCEL in allow or TERMINATE in allow:
                if not connection.all_stats:
                    needed["pg_read_all_stats"] = "GRANT pg_read_all_stats"
                if not row["signals"]:
                    needed["pg_signal_backend"] = "GRANT pg_signal_backend"
            if RELOAD in allow and not row["reloads"]:
                execute = "EXECUTE ON FUNCTION pg_reload_conf()"
                needed["pg_reload_conf()"] = f"GRANT {execute}"
        if needed:
            raise ObservationFailed(
                f"the role {role} may not use {', '.join(needed)}",
                hint="; ".join(f'{one} TO "{role}"' for one in needed.values()),
            )
        return f"the role {role} may do it"

    async def run(self, action: ProposedAction) -> ActionResult:
        """See `Actionable.run_action`."""
        try:
            async with Connection(self._settings) as connection:
                return await self._act(connection, action)
        except ObservationFailed as error:
            return ActionResult("failed", f"nothing was done: {error.one_line()}")

    async def _act(
        self, connection: Connection, action: ProposedAction
    ) -> ActionResult:
        if not connection.all_stats:
            return ActionResult("failed", f"nothing was done: {_HIDDEN}")
        try:
            rows = await connection.rows(
                _ACT[action.kind], {**action.target, **self._wait}
            )
        except NotPermitted as error:
            return ActionResult("failed", f"the server refused it: {error.message}")
        except QueryFailed as error:
            return ActionResult(
                "unknown", f"the server did not say whether it did it: {error.message}"
            )
        if not rows:
            reason, _ = await self._reason(connection, action)
            return ActionResult(
                "not_run", reason or "it was not the same for a moment; look again"
            )
        if rows[0]["did"]:
            return ActionResult("done", _DID[action.kind])
        return ActionResult("unknown", _DID_NOT[action.kind])

    async def _reason(
        self, connection: Connection, action: ProposedAction
    ) -> tuple[str, str]:
        """Return why it is not to be done, or "", and what was seen."""
        if action.kind == RELOAD:
            [row] = await connection.rows(_LOADED)
            at = datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="seconds")
            seen = f"the configuration was loaded at {at}"
            since = float(action.target["not_since"] or 0)
            late = float(row["at"]) > since
            return (f"{seen}, after the evidence was gathered" if late else ""), seen
        if not connection.all_stats:
            return _HIDDEN, ""
        rows = await connection.rows(_SEEN, {"pid": action.target["pid"]})
        return _differs(action, rows), _seen(rows)


_HIDDEN = (
    "the role may not see the sessions of others: grant pg_read_all_stats to the role of actions.dsn, "
    "and pg_signal_backend to end them"
)
_DID = {
    CANCEL: "the server was asked to cancel the statement",
    TERMINATE: "the session has ended",
    RELOAD: "the server was asked to read its configuration again",
}
_DID_NOT = {
    CANCEL: "the server could not signal the session",
    TERMINATE: "the session was asked to end, and still ran when the time was over",
    RELOAD: "the server could not signal its main process",
}


def _differs(action: ProposedAction, rows: Sequence[Row]) -> str:
    """Return in what the session is not the one of the evidence any more; "" if it is."""
    target = action.target
    pid = target["pid"]
    if not rows:
        return f"pid {pid} is gone"
    row = rows[0]
    if row["backend_start"] != target["backend_start"]:
        return (
            f"pid {pid} is another session now, connected since {row['backend_start']}"
        )
    if row["backend_type"] != "client backend":
        return f"pid {pid} is a process of the server: {text(row['backend_type'], 40)}"
    if row["xact_start"] != target["xact_start"]:
        return f"pid {pid} is not in that transaction any more"
    if target["blocks"] and not row["blocks"]:
        return f"pid {pid} blocks no session any more"
    if action.kind == CANCEL and (
        row["state"] != "active" or row["query_start"] != target["query_start"]
    ):
        return f"pid {pid} does not run that statement any more"
    return ""


def _seen(rows: Sequence[Row]) -> str:
    return "".join(
        f"it is still that session: {text(row['state'], 40)}, user {text(row['usename'], 64)}"
        + (", and blocks others" if row["blocks"] else "")
        for row in rows[:1]
    )


def _shown(action: ProposedAction) -> str:
    """Return the statement for a person, with its conditions in short."""
    if action.kind == RELOAD:
        return "SELECT pg_reload_conf()"
    function = "pg_cancel_backend" if action.kind == CANCEL else "pg_terminate_backend"
    target = action.target
    conditions = [
        f"pid = {target['pid']}",
        f"backend_start = '{target['backend_start']}'",
    ]
    if target["xact_start"]:
        conditions.append(f"xact_start = '{target['xact_start']}'")
    if action.kind == CANCEL:
        conditions.append(f"query_start = '{target['query_start']}'")
    where = " AND ".join(conditions)
    return f"SELECT {function}(pid) FROM pg_stat_activity WHERE {where}"
