"""What a MariaDB or MySQL server shows, as plain text, one fact a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from midwatch.subjects.lock_queues import PREPARED
from midwatch.subjects.mysql.locks import UNKNOWN, LockWaits
from midwatch.subjects.mysql.sessions import does, who
from midwatch.subjects.rows import QUERY, Row, bounded, number, text
from midwatch.units import format_count, format_duration

# Each goes on to the end of the line, where what a client wrote ends at the latest.
CLIENT_TEXT = (
    re.compile(r"(?m)(?:, |: )(?:runs|last ran): (.*)$"),
    re.compile(r"(?m)^statement: (.*)$"),
    re.compile(r"(?m)\bquery=(.*)$"),
    re.compile(r"(?m)\b(?:last_sql_error|last_io_error): (.*)$"),
)
"""What clients wrote in evidence: statements, and errors that quote statements."""

_TREE = (
    16  # lines of a tree: what waits behind the same session for the same is counted
)


def session(row: Row) -> str:
    """Return one session on one line, what its client has chosen last."""
    parts = [f"connection {row['pid']}: {does(row)}"]
    if row["age"] is not None:
        age = format_duration(number(row["age"]))
        parts.append(f"transaction open for {age} since {row['started']}")
        parts.append(
            f"{int(number(row['rows_locked']))} rows locked, {int(number(row['rows_modified']))} changed"
        )
    parts.append(who(row))
    parts.append(f"database {text(row['db'], 64) or 'none'}")
    did = "last ran" if row["command"] == "Sleep" else "runs"
    said = text(row["query"], QUERY) or "(not known)"
    return ", ".join(parts) + f", {did}: {said}"


def activity(rows: Sequence[Row], waiting: frozenset[int] = frozenset()) -> str:
    """Return the sessions, one a line, without those that wait for a lock in the tree."""
    shown = [row for row in rows if row["pid"] not in waiting]
    lines = [session(row) for row in shown]
    if left_out := len(rows) - len(shown):
        count = format_count(left_out, "session")
        lines.append(f"and {count} waiting for a lock: see the lock tree")
    return bounded(lines) or "no session is active or in a transaction"


def lock_tree(waits: LockWaits) -> str:
    """Return each root blocker, and indented under it the sessions that wait for it."""
    tree = waits.blocking
    if not tree.waits:
        return "no session waits for a lock"
    lines = []
    if not waits.certain:
        lines.append(
            "who holds a metadata lock is not shown by the server: the roots are the sessions that can hold it"
        )
    for root in tree.roots():
        waiting = list(tree.walk(root))
        lines.append(
            f"root: blocks {format_count(len(waiting), 'session')}; {_root(root, waits)}"
        )
        lines += [_waiter(depth, row, waits) for depth, row in waiting[:_TREE]]
        if rest := waiting[_TREE:]:
            lines.append(f"  … and {len(rest)} more: {_counted(rest, waits)}")
    return bounded(lines)


def _root(root: int, waits: LockWaits) -> str:
    if root == PREPARED:
        return "a prepared XA transaction (XA RECOVER lists it)"
    if root == UNKNOWN:
        return "a session that the server does not show as holder"
    row = waits.sessions.get(root)
    return session(row) if row else f"connection {root}: gone meanwhile"


def _counted(waiting: Sequence[tuple[int, Row]], waits: LockWaits) -> str:
    """Return by whom the sessions were opened, the most frequent first."""
    rows = [waits.sessions.get(int(row["pid"])) for _, row in waiting]
    counts = Counter(who(row) for row in rows if row)
    return "; ".join(f"{count} of {name}" for name, count in counts.most_common(6))


def _waiter(depth: int, wait: Row, waits: LockWaits) -> str:
    blockers = [
        "an unknown one" if one == UNKNOWN else str(one)
        for one in sorted(set(wait["blockers"]))
    ]
    what = text(wait["lock_type"], 40)
    if wait["table"]:
        what += f" of {text(wait['table'], 130)}"
        if wait.get("index"):
            what += f" ({text(wait['index'], 64)})"
    row = waits.sessions.get(int(wait["pid"]))
    said = f"{who(row)}, runs: {text(row['query'], QUERY)}" if row else "gone meanwhile"
    since = (
        f", in its transaction since {row['started']}" if row and row["started"] else ""
    )
    waited = format_duration(number(wait["waited"]))
    return (
        f"{'  ' * min(depth, 20)}connection {wait['pid']} has waited {waited} for a {what} "
        f"behind {', '.join(blockers[:6])}{since}: {said}"
    )


def counts(rows: Sequence[Row]) -> str:
    """Return how many connections there are by user, client and command."""
    return bounded(
        [
            f"{row['sessions']} of user {text(row['user'], 64)} at {text(row['client'], 64)}: {text(row['command'], 20)}, "
            f"the longest for {format_duration(number(row['longest']))}"
            for row in rows
        ]
    )


# ------------------------------------------------------------------ InnoDB's report

_TITLE = re.compile(r"(?m)^-{3,}\n([A-Z][A-Z /]+)\n-{3,}$")
_CONCERNING = (
    "LATEST FOREIGN KEY ERROR",
    "SEMAPHORES",
    "TRANSACTIONS",
    "ROW OPERATIONS",
)
# The values of locked records, sessions that do nothing, and the end.
_NOISE = re.compile(
    r"\s*\d+: (?:len|SQL NULL)|\s*$|Record lock, heap|-{4,}$|={4,}$|END OF INNODB|.*\bnot started$|0 lock struct"
)
_MOST_LINES = {"LATEST DETECTED DEADLOCK": 80}


def innodb_sections(report: str) -> dict[str, str]:
    """Return the sections of SHOW ENGINE INNODB STATUS by title, without the values of records."""
    parts = _TITLE.split(report)
    sections = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line[:400] for line in body.splitlines() if not _NOISE.match(line)]
        sections[title] = "\n".join(lines[: _MOST_LINES.get(title, 25)])
    return sections


def deadlock(report: str) -> str:
    """Return both sides of the latest deadlock; empty without one."""
    return innodb_sections(report).get("LATEST DETECTED DEADLOCK", "")


def innodb_summary(report: str) -> str:
    """Return the sections that concern waits and transactions."""
    sections = innodb_sections(report)
    found = [(title, sections.get(title)) for title in _CONCERNING]
    return "\n".join(f"{title}:\n{body}" for title, body in found if body)
