"""Sessions and lock queues as the evidence shows them, and what can be done about one without harm to another.

A command that ends something runs only while the session still is what the evidence shows: MariaDB and MySQL give a
connection id once only until the server restarts, so the check before it is that of the transaction's start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context
from midwatch.playbooks.base import action, bounded, evidence_lines
from midwatch.playbooks.waiting_sessions import (
    Queues,
    ShownSession,
    Waiting,
    session_lines,
)

_LINE = re.compile(
    r"connection (?P<id>\d+): (?P<state>.*?)"
    r"(?:, transaction open for .*? since (?P<since>[0-9T:.-]+), \d+ rows locked, (?P<changed>\d+) changed)?"
    r", user (?P<user>.*?)(?: at (?P<client>\S*))?, database (?P<database>.*?), (?:runs|last ran): (?P<query>.*)$"
)
_WAITER = re.compile(
    r"connection (?P<id>\d+) has waited (?P<waited>.*?) for a (?P<what>.*?) behind (?P<behind>[\d, a-z]+?)"
    r"(?:, in its transaction since (?P<since>[0-9T:.-]+))?: (?P<rest>.*)$"
)
_ROOT = re.compile(r"root: blocks .*?; (?:connection (\d+):|(a .*))")
_TREE, _ACTIVE = "Lock tree", "Sessions that are active"
BACKUP = re.compile(
    r"mysqldump|mariadb-?dump|mydumper|backup|/\*!40001 SQL_NO_CACHE \*/", re.IGNORECASE
)
_STRONG = re.compile(
    r".*?, runs: (?:\s|/\*.*?\*/)*(ALTER|DROP|TRUNCATE|RENAME|CREATE|OPTIMIZE|LOCK|FLUSH|REPAIR|ANALYZE|BACKUP)\b(\s+\w+)?",
    re.IGNORECASE,
)
SYSTEM = frozenset(("system user", "event_scheduler"))
ROLLBACK = "its transaction is rolled back and its client sees an error"


@dataclass(frozen=True, slots=True)
class Session(ShownSession):
    """A session on a line of evidence. `changed` is the number of rows that its transaction changed."""

    changed: str = ""

    @property
    def spared(self) -> str:
        """Why it must not be ended without a person's decision; empty where nothing speaks against it."""
        if self.user in SYSTEM:
            return (
                "it is a thread of the server (replication or events), not of a client"
            )
        if BACKUP.search(f"{self.user} {self.query}"):
            return "it is a backup: ended, there is none"
        return ""

    @property
    def name(self) -> str:
        """The session in words: id, user, client."""
        at = f" at {self.client}" if self.client else ""
        return f"connection {self.id} (user {self.user or 'unknown'}{at})"


def sessions(context: Context) -> dict[int, Session]:
    """Return the sessions in the evidence of this moment, by id."""
    found: dict[int, Session] = {}
    titles = (_TREE, _ACTIVE)
    for number, quoted, names in session_lines(context, titles, _LINE, "connection "):
        found.setdefault(number, Session(number, quoted, **names))
    return found


# ------------------------------------------------------------------ the queues


@dataclass(frozen=True, slots=True)
class Waiter(Waiting):
    """A session that waits for a lock: `what`."""

    what: str


@dataclass(frozen=True, slots=True)
class LockTree(Queues[Waiter]):
    """The waits of one moment. `hidden` are roots without a session; `certain` is false where roots are guessed."""

    hidden: dict[str, Citation] = field(default_factory=dict)
    certain: bool = True


def read_tree(context: Context) -> LockTree:
    """Return the lock queues in the evidence; empty where no session waits."""
    tree = LockTree()
    first: Citation | None = None
    certain = True
    for evidence_id, line in evidence_lines(context, _TREE):
        cited = Citation(evidence_id=evidence_id, quote=bounded(line))
        first = first or cited
        if line.startswith("who holds a metadata lock is not shown"):
            certain = False
        elif root := _ROOT.match(line):
            if root[1]:
                tree.roots.setdefault(int(root[1]), cited)
            else:
                tree.hidden.setdefault(root[2], cited)
        elif waiter := _WAITER.match(line):
            number = int(waiter["id"])
            strong = _STRONG.match(", " + waiter["rest"].partition(", ")[2])
            tree.waiters.setdefault(
                number,
                Waiter(
                    number,
                    frozenset(map(int, re.findall(r"\d+", waiter["behind"]))),
                    f"{strong[1]}{strong[2] or ''}".upper() if strong else "",
                    cited,
                    waiter["what"],
                ),
            )
    return LockTree(tree.roots, tree.waiters, first, tree.hidden, certain)


# ------------------------------------------------------------------ actions


def inspect(*ids: int) -> Action:
    chosen = ", ".join(map(str, ids))
    return action(
        "See whether it still does so, and ask its owner",
        "SELECT id, user, host, db, command, time, state, info FROM information_schema.processlist\n"
        f"WHERE id IN ({chosen});",
        "SELECT trx_mysql_thread_id, trx_started, trx_state, trx_rows_modified FROM information_schema.innodb_trx\n"
        f"WHERE trx_mysql_thread_id IN ({chosen});",
    )


def end(session: Session, what: str) -> list[Action]:
    """Return the action that ends an idle session with an open transaction; none for any other one."""
    if not session.since or session.spared or not session.idle:
        return []
    return [
        action(
            f"{what}: first see that its transaction is still the one of {session.since.replace('T', ' ')} and that it is idle",
            "SELECT t.trx_started, p.command, p.time FROM information_schema.innodb_trx t\n"
            f"JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id WHERE p.id = {session.id};",
            f"KILL {session.id};",
            risk=f"{ROLLBACK}; what it has not committed is lost"
            + (
                f" ({session.changed} changed rows)"
                if session.changed not in ("", "0")
                else ""
            ),
            undo=False,
        )
    ]


def cancel(number: int, what: str, statement: str) -> list[Action]:
    """Return the action that cancels one statement; the session stays."""
    return [
        action(
            f"{what}: first see that it still runs `{statement[:80]}`",
            f"SELECT time, state, info FROM information_schema.processlist WHERE id = {number};",
            f"KILL QUERY {number};",
            risk="its client sees an error and has to repeat it",
            undo=False,
        )
    ]
