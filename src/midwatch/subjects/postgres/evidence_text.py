"""Rows of a PostgreSQL server as plain text, one fact a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from midwatch.subjects.lock_queues import PREPARED, Blocking
from midwatch.subjects.postgres.connection import state, who
from midwatch.subjects.rows import QUERY, Row, bounded, number, text
from midwatch.units import format_count, format_duration

# Each goes on to the last place where what a client wrote can end, or to the end of the line.
CLIENT_TEXT = (
    re.compile(r"(?m)(?:, |: )(?:runs|last ran): (.*)$"),
    re.compile(r"(?m)^statement: (.*)$"),
    re.compile(
        r"(?m)\bapplication (.*(?=, database )|.*(?=, (?:runs|last ran): )|.*(?=\) )|.*$)"
    ),
    re.compile(
        r"(?m)\b(?:application(?:_name)?|query|gid|detail)=(.*(?= \w+=\S*$)|.*$)"
    ),
)
"""What clients wrote in evidence: statements, and the names that they give themselves."""

_BLOCKERS = 4  # pids that a waiting session is shown to wait for
_TREE = 16  # lines of a blocking tree: what waits behind the same session for the same is counted


def server(rows: Sequence[Row]) -> str:
    row = rows[0]
    return "\n".join(
        [
            text(row["version"], 200),
            f"up for {format_duration(number(row['uptime']))} (since {text(row['started'])})",
            f"role: {'standby' if row['standby'] else 'primary'}",
            f"now: {text(row['now'])}",
        ]
    )


def activity(rows: Sequence[Row], *, waiting: bool = True) -> str:
    """Return the sessions, one a line; without those that wait for a lock unless `waiting`."""
    shown = [row for row in rows if waiting or row["wait_event_type"] != "Lock"]
    lines = [session(row) for row in shown]
    if left_out := len(rows) - len(shown):
        count = format_count(left_out, "session")
        lines.append(f"and {count} waiting for a lock: see the blocking tree")
    return bounded(lines) or "no session is active or in a transaction"


def session(row: Row) -> str:
    """Return one session on one line, what its client has chosen last."""
    parts = [f"pid {row['pid']}: {state(row)}"]
    if row["backend_type"] != "client backend":
        parts.append(f"process {text(row['backend_type'], 40)}")
    if row["xact_age"] is not None:
        age = format_duration(number(row["xact_age"]))
        parts.append(f"transaction open for {age} since {_since(row)}")
    if row["wait_event_type"] is not None and row["wait_event"] != "ClientRead":
        parts.append(
            f"waits on {text(row['wait_event_type'])}/{text(row['wait_event'])}"
        )
    if row.get("backend_start") is not None:
        parts.append(f"connected since {row['backend_start']}")
    parts.append(who(row))
    parts.append(
        f"database {text(row['datname'], 64)}, client {text(row['client'], 64)}"
    )
    did = "runs" if row["state"] == "active" else "last ran"
    return ", ".join(parts) + f", {did}: {text(row['query'], QUERY)}"


def _since(row: Row) -> str:
    """Return the start of a transaction, and that of its statement if it is a later one."""
    statement = row["query_start"]
    if row["state"] != "active" or statement == row["xact_start"]:
        return str(row["xact_start"])
    return f"{row['xact_start']}, statement since {statement}"


def blocking(tree: Blocking, sessions: Mapping[int, Row]) -> str:
    """Return each root blocker, and indented under it the sessions that wait for it."""
    if not tree.waits:
        return "no session waits for a lock"
    lines = []
    for root in tree.roots():
        waiting = list(tree.walk(root))
        count = f"blocks {format_count(len(waiting), 'session')}"
        if root == PREPARED:
            lines.append(f"root: a prepared transaction {count}")
        else:
            row = sessions.get(root)
            line = session(row) if row else f"pid {root}: gone meanwhile"
            lines.append(f"root: {count}; {line}")
        lines += [_waiter(depth, row, sessions, tree) for depth, row in waiting[:_TREE]]
        if rest := waiting[_TREE:]:
            lines.append(f"  … and {len(rest)} more: {_counted(rest, sessions)}")
    return bounded(lines)


def _counted(waiting: Sequence[tuple[int, Row]], sessions: Mapping[int, Row]) -> str:
    """Return by whom the sessions were opened, the most frequent first."""
    rows = [sessions.get(int(row["pid"])) for _, row in waiting]
    counts = Counter(who(row) for row in rows if row)
    return "; ".join(f"{count} of {name}" for name, count in counts.most_common(6))


def _waiter(depth: int, wait: Row, sessions: Mapping[int, Row], tree: Blocking) -> str:
    pid = int(wait["pid"])
    waited = f"has waited {format_duration(number(wait['waited']))}"
    blockers = sorted(set(wait["blockers"]))
    behind = ", ".join(map(str, blockers[:_BLOCKERS]))
    if more := len(blockers) - _BLOCKERS:
        behind += f" and {more} more" if more > 0 else ""
    row = sessions.get(pid)
    if row and row["xact_start"] and pid in tree.behind:
        behind += f", in its transaction since {_since(row)}"
    line = f"{who(row)}, runs: {text(row['query'], QUERY)}" if row else "gone meanwhile"
    return f"{'  ' * min(depth, 20)}pid {pid} {waited} for pid {behind}: {line}"
