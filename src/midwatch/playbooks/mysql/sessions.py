"""Sessions and lock queues as the evidence shows them, and what can be done about one without harm to another.

A command that ends something runs only while the session still is what the evidence shows: MariaDB and MySQL give a
connection id once only until the server restarts, so the check before it is that of the transaction's start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from midwatch.diagnosis_schema import Action, Citation
from midwatch.model import Context
from midwatch.playbooks.base import action, bounded, evidence_lines

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
class Session:
    """A session on a line of evidence. `since` is the start of its transaction, empty without one."""

    id: int
    citation: Citation
    state: str = ""
    since: str = ""
    changed: str = ""
    user: str = ""
    client: str = ""
    database: str = ""
    query: str = ""

    @property
    def idle(self) -> bool:
        return self.state.startswith("idle in transaction")

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
    for title in (_TREE, _ACTIVE):
        for evidence_id, line in evidence_lines(context, title):
            start = line.find("connection ") if line.startswith("root: ") else 0
            match = _LINE.match(line[start:]) if start >= 0 else None
            if match:
                names = {key: value or "" for key, value in match.groupdict().items()}
                number = int(names.pop("id"))
                quoted = Citation(evidence_id=evidence_id, quote=bounded(line))
                found.setdefault(number, Session(number, quoted, **names))
    return found


# ------------------------------------------------------------------ the queues


@dataclass(frozen=True, slots=True)
class Waiter:
    """A session that waits; `statement` is what it runs if that needs a table for itself, such as `ALTER TABLE`."""

    id: int
    behind: frozenset[int]
    what: str
    statement: str
    citation: Citation


@dataclass(frozen=True, slots=True)
class LockTree:
    """The waits of one moment. `first` is None where that evidence is missing; `certain` is false where roots are guessed."""

    roots: dict[int, Citation] = field(default_factory=dict)
    hidden: dict[str, Citation] = field(default_factory=dict)
    waiters: dict[int, Waiter] = field(default_factory=dict)
    first: Citation | None = None
    certain: bool = True

    def behind(self, root: int) -> set[int]:
        """Return the sessions that wait for this one, at any depth."""
        found: set[int] = set()
        while (
            more := {
                one.id for one in self.waiters.values() if one.behind & (found | {root})
            }
            - found
        ):
            found |= more
        return found

    def roots_of(self, ids: Iterable[int]) -> list[int]:
        """Return who holds what these sessions wait for, without those that wait themselves."""
        seen: set[int] = set()
        left = [one for one in ids if one in self.waiters]
        while left:
            one = left.pop()
            if one not in seen:
                seen.add(one)
                left += self.waiters[one].behind if one in self.waiters else ()
        return sorted(seen - self.waiters.keys())

    def gate(self, among: Iterable[int]) -> Waiter | None:
        """Return the waiting statement without which most of the others would not wait, or None.

        It has not got its lock yet: it is the one that loses least.
        """
        found = [
            (len(self.behind(one)), -one, self.waiters[one])
            for one in among
            if one in self.waiters and self.waiters[one].statement and self.behind(one)
        ]
        return max(found)[2] if found else None


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
                    waiter["what"],
                    f"{strong[1]}{strong[2] or ''}".upper() if strong else "",
                    cited,
                ),
            )
    return LockTree(tree.roots, tree.hidden, tree.waiters, first, certain)


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
