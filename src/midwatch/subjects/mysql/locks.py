"""Who waits for whom in one moment: rows, tables, metadata and user locks. Pure.

The waits for rows come from InnoDB and are exact. Who holds a metadata lock is exact where performance_schema or the
plugin METADATA_LOCK_INFO shows it; else it is one of the transactions that were open, or the statements that ran, before
the wait began.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from midwatch.errors import ObservationFailed
from midwatch.subjects.lock_queues import PREPARED, Blocking
from midwatch.subjects.mysql.snapshot import Snapshot, needs_process, waits_for_metadata
from midwatch.subjects.rows import Row, number, text

UNKNOWN = -1
"""The id of who blocks where no session that can be it is to be seen."""
USER_LOCK, ROW_LOCK = "user lock", "row lock"

_OTHER_WAITS = ("table level lock", "table flush")
_STRONG = re.compile(
    r"(?:\s|/\*.*?\*/)*(ALTER|DROP|TRUNCATE|RENAME|CREATE|OPTIMIZE|LOCK|FLUSH|REPAIR|ANALYZE|BACKUP)\b(\s+\w+)?",
    re.IGNORECASE | re.DOTALL,
)
_SHARED = frozenset(("SHARED", "SHARED_HIGH_PRIO", "SHARED_READ", "SHARED_WRITE"))
_WORD = re.compile(r"`([^`]+)`|(\w+)")


@dataclass(frozen=True, slots=True)
class LockWaits:
    """The waits with the sessions that take part, by id. `certain` is false where holders are inferred."""

    blocking: Blocking
    sessions: Mapping[int, Row] = field(default_factory=dict)
    certain: bool = True


def strong_statement(query: object) -> str:
    """Return the start of a statement whose lock keeps everybody else out, such as `ALTER TABLE`; else empty."""
    found = _STRONG.match(str(query or ""))
    return f"{found[1]}{found[2] or ''}".upper() if found else ""


def sessions_of(seen: Snapshot) -> list[Row]:
    """Return the sessions, each with its transaction. Raises QueryFailed or NotPermitted.

    A row has `pid`, `datname` (its database or `server`), `age` and `started` of its transaction, None without one, and
    `last`, what it ran last where that is known.
    """
    needs_process(seen)
    open_transactions = {
        int(row["id"]): row for row in seen.rows("transactions") if row["id"]
    }
    last = {int(row["id"]): row["query"] for row in seen.known("last")}
    found: list[Row] = []
    for row in seen.rows("sessions"):
        pid = int(row["id"])
        transaction = open_transactions.get(pid, {})
        found.append(
            {
                **row,
                "pid": pid,
                "datname": text(row["db"], 64) or "server",
                "seconds": number(row["seconds"]),
                "age": transaction.get("age"),
                "started": transaction.get("started"),
                "rows_locked": transaction.get("rows_locked"),
                "rows_modified": transaction.get("rows_modified"),
                "query": row["query"] or last.get(pid),
            }
        )
    return found


def lock_waits(seen: Snapshot) -> LockWaits:
    """Return the waits. Raises QueryFailed or NotPermitted."""
    sessions = {int(row["pid"]): row for row in sessions_of(seen)}
    waits = _row_waits(seen, sessions)
    certain = True
    metadata = [
        row
        for row in sessions.values()
        if row["pid"] not in waits and _kind_of_wait(row)
    ]
    if metadata:
        exact = _exact_blockers(seen, metadata)
        for row in metadata:
            blockers = exact.get(int(row["pid"]))
            if blockers is None:
                blockers = _candidates(row, metadata, sessions.values(), waits)
                certain = False
            waits[int(row["pid"])] = _wait(row, blockers, _kind_of_wait(row))
    return LockWaits(Blocking.of(list(waits.values())), sessions, certain)


def is_holder_hidden(seen: Snapshot) -> bool:
    """Return whether a session waits for one that is not among those that were read."""
    try:
        return UNKNOWN in lock_waits(seen).blocking.behind
    except ObservationFailed:
        return False


def _kind_of_wait(row: Row) -> str:
    """Return what a session waits for by its state, empty for one that does not wait."""
    state = str(row["state"] or "")
    if state == "User lock":
        return USER_LOCK
    if waits_for_metadata(row) or state.lower().endswith(_OTHER_WAITS):
        return text(state.lower().removeprefix("waiting for "), 40)
    return ""


def _wait(row: Row, blockers: Sequence[int], kind: str, **more: object) -> Row:
    return {
        "pid": row["pid"],
        "datname": row["datname"],
        "waited": row["seconds"],
        "blockers": list(blockers),
        "lock_type": kind,
        "table": None,
        **more,
    }


# ------------------------------------------------------------------ rows


def _row_waits(seen: Snapshot, sessions: Mapping[int, Row]) -> dict[int, Row]:
    waits: dict[int, Row] = {}
    for row in seen.rows("waits"):
        pid, blocker = int(row["id"]), int(row["blocker"] or PREPARED)
        if pid == blocker:
            continue
        session = sessions.get(pid) or {
            "pid": pid,
            "datname": text(row["table"], 64).partition(".")[0] or "server",
        }
        wait = waits.setdefault(
            pid,
            _wait(
                {**session, "seconds": number(row["waited"])},
                [],
                ROW_LOCK,
                table=text(row["table"], 130),
                index=text(row["index"], 64),
            ),
        )
        if blocker not in wait["blockers"]:
            wait["blockers"].append(blocker)
    return waits


# ------------------------------------------------------------------ metadata


def _exact_blockers(seen: Snapshot, waiting: Sequence[Row]) -> dict[int, list[int]]:
    """Return who holds what these sessions wait for, where the server shows it."""
    held = seen.known("metadata")
    found: dict[int, list[int]] = {}
    for row in waiting:
        pid, words = int(row["pid"]), words_of(row["query"])
        pending = [one for one in held if one["id"] == pid and not one["granted"]]
        strong = bool(strong_statement(row["query"])) or any(
            one["mode"] == "EXCLUSIVE" for one in pending
        )
        objects = {_object(one) for one in pending} or {
            _object(one) for one in held if str(one["name"]).lower() in words
        }
        blockers = {
            int(one["id"])
            for one in held
            if one["granted"]
            and _object(one) in objects
            and int(one["id"]) != pid
            and (strong or one["mode"] not in _SHARED)
        }
        if blockers:
            found[pid] = sorted(blockers)
    return found


def _object(lock: Row) -> tuple[str, str]:
    return str(lock["db"] or "").lower(), str(lock["name"] or "").lower()


def _candidates(
    row: Row,
    waiting: Sequence[Row],
    sessions: Collection[Row],
    row_waits: Mapping[int, Row],
) -> list[int]:
    """Return the sessions that can hold what this one waits for.

    A statement that needs the table for itself stands in front of those that came later and name the same table.
    """
    waited = number(row["seconds"])
    words = words_of(row["query"])
    ahead = [
        int(one["pid"])
        for one in waiting
        if one["pid"] != row["pid"]
        and number(one["seconds"]) >= waited
        and (said := strong_statement(one["query"]))
        and _in_front(one, row)
        and (words & _tables_of(one["query"]) or said.startswith("FLUSH"))
    ]
    if ahead and not strong_statement(row["query"]):
        return ahead
    waiting_ids = {one["pid"] for one in waiting}
    holders = [
        int(one["pid"])
        for one in sessions
        if one["pid"] not in waiting_ids
        and one["pid"] not in row_waits
        and one["pid"] != row["pid"]
        and _can_hold(one, waited, words)
    ]
    return holders or ahead or [UNKNOWN]


def _in_front(one: Row, row: Row) -> bool:
    """Return whether one of two waiting sessions came first; of the same second, the one with the lower id."""
    if number(one["seconds"]) != number(row["seconds"]):
        return True
    return not strong_statement(row["query"]) or int(one["pid"]) < int(row["pid"])


def _can_hold(one: Row, waited: float, words: set[str]) -> bool:
    if one["age"] is not None:
        # In whole seconds, and read by another statement than the wait.
        return number(one["age"]) + 2 >= waited
    running = one["command"] not in ("Sleep", "Connect")
    return (
        running
        and number(one["seconds"]) + 1 >= waited
        and bool(words & _tables_of(one["query"]))
    )


_KEYWORDS = frozenset(
    "select from where update set insert into delete alter table add column drop create index on and or as join "
    "lock unlock tables read write values order by group limit null not in is like count int text char varchar "
    "default key primary unique modify change rename to truncate begin commit start transaction with".split()
)


def words_of(statement: object) -> set[str]:
    """Return the names and words of a statement, in small letters."""
    return {
        (quoted or plain).lower()
        for quoted, plain in _WORD.findall(str(statement or ""))
    }


def _tables_of(statement: object) -> set[str]:
    return words_of(statement) - _KEYWORDS
