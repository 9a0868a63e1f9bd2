"""Rows as text that is easy to quote (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...units import format_duration
from .tree import PREPARED, Blocking
from .wording import Row, number, state, text, who

MOST = 60  # lines of a list
QUERY = 300


def facts(rows: Sequence[Row]) -> str:
    """`name: value` where a row has just these two, else `a=1 b=2` with what is known."""
    return _bounded([_fact(row) for row in rows])


def _fact(row: Row) -> str:
    if set(row) == {"name", "value"}:
        return f"{text(row['name'], 80)}: {text(row['value'], QUERY)}"
    known = {key: value for key, value in row.items() if value not in (None, "")}
    return " ".join(f"{key}={text(value, QUERY)}" for key, value in known.items())


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


def activity(rows: Sequence[Row]) -> str:
    if not rows:
        return "no session is at work or in a transaction"
    return _bounded([session(row) for row in rows])


def session(row: Row) -> str:
    """One session on one line."""
    parts = [f"pid {row['pid']}: {state(row)}", who(row)]
    parts.append(
        f"database {text(row['datname'], 64)}, client {text(row['client'], 64)}"
    )
    if row["xact_age"] is not None:
        parts.append(f"transaction open for {format_duration(number(row['xact_age']))}")
    if row["wait_event_type"] not in (None, "Client"):
        parts.append(
            f"waits on {text(row['wait_event_type'])}/{text(row['wait_event'])}"
        )
    did = "runs" if row["state"] == "active" else "last ran"
    return ", ".join(parts) + f", {did}: {text(row['query'], QUERY)}"


def blocking(tree: Blocking, sessions: Mapping[int, Row]) -> str:
    """Each root blocker, and indented under it those who wait for it."""
    if not tree.waits:
        return "no session waits for a lock"
    lines = []
    for root in tree.roots():
        waiting = list(tree.walk(root))
        count = f"blocks {len(waiting)} session{'' if len(waiting) == 1 else 's'}"
        if root == PREPARED:
            lines.append(f"root: a prepared transaction {count}")
        else:
            row = sessions.get(root)
            told = session(row) if row else f"pid {root}: gone meanwhile"
            lines.append(f"root: {count}; {told}")
        lines += [_waiter(depth, row, sessions) for depth, row in waiting]
    return _bounded(lines)


def _waiter(depth: int, wait: Row, sessions: Mapping[int, Row]) -> str:
    pid = int(wait["pid"])
    waited = f"has waited {format_duration(number(wait['waited']))}"
    behind = ", ".join(str(one) for one in sorted(set(wait["blockers"])))
    row = sessions.get(pid)
    told = f"{who(row)}, runs: {text(row['query'], QUERY)}" if row else "gone meanwhile"
    return f"{'  ' * min(depth, 20)}pid {pid} {waited} for pid {behind}: {told}"


def _bounded(lines: Sequence[str]) -> str:
    more = len(lines) - MOST
    return "\n".join([*lines[:MOST], *([f"… and {more} more"] if more > 0 else [])])
