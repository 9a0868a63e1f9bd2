"""The lock queues as the evidence shows them now: who holds, who waits, and who would be free without whom."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context
from midwatch.playbooks.base import bounded, evidence_lines

PREPARED = 0
"""The pid of a prepared transaction among the blockers: it has no process."""

_WAITER = re.compile(
    r"pid (\d+) has waited .*? for pid (\d+(?:, \d+)*)"
    r"(?: and \d+ more)?"
    r"(?:, in its transaction since ([0-9T:.-]+Z)(?:, statement since ([0-9T:.-]+Z))?)?: (.*)$"
)
_ROOT = re.compile(r"root: (?:blocks .*?; pid (\d+):|(a prepared transaction))")
# Statements whose lock keeps everybody else out, also behind comments and settings of the same message.
_STRONG = re.compile(
    r".*?, runs: (?:\s|/\*.*?\*/|(?:BEGIN|START TRANSACTION|SET)\b[^;]*;)*"
    r"(ALTER|DROP|TRUNCATE|LOCK|REINDEX|CLUSTER|VACUUM(?=\s+FULL\b|\s*\([^)]*\bFULL\b)|CREATE|REFRESH|GRANT|REVOKE"
    r"|COMMENT|SECURITY|ATTACH|REPACK)\b(\s+\w+)?(?P<more>.*)",
    re.IGNORECASE,
)
# These wait for old transactions in the midst of long work; cancelled, they leave an invalid index behind.
_CONCURRENT = re.compile(r"\bCONCURRENTLY\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Waiter:
    """A session that waits.

    Where others wait for it, `since` is the start of its transaction, `begun` that of its statement if it is later.
    """

    pid: int
    behind: frozenset[int]
    since: str
    begun: str
    rest: str
    citation: Citation

    @property
    def statement(self) -> str:
        """Return what it runs if that needs a lock that keeps everybody out, such as `ALTER TABLE`."""
        match = _STRONG.match(self.rest)
        if match is None or _CONCURRENT.search(match["more"]):
            return ""
        return f"{match[1]}{match[2] or ''}".upper()


@dataclass(frozen=True, slots=True)
class LockTree:
    """The waits of one moment. `seen` is False where that evidence is missing."""

    roots: dict[int, Citation] = field(default_factory=dict)
    waiters: dict[int, Waiter] = field(default_factory=dict)
    first: Citation | None = None

    def roots_of(self, pids: Iterable[int]) -> list[int]:
        """Return who holds what these sessions wait for, without those that wait themselves."""
        seen: set[int] = set()
        left = [pid for pid in pids if pid in self.waiters]
        while left:
            pid = left.pop()
            if pid not in seen:
                seen.add(pid)
                left += self.waiters[pid].behind if pid in self.waiters else ()
        return sorted(seen - self.waiters.keys())

    def behind(self, pid: int) -> set[int]:
        """Return the sessions that wait for this one, at any depth."""
        found: set[int] = set()
        while (
            more := {
                one.pid for one in self.waiters.values() if one.behind & (found | {pid})
            }
            - found
        ):
            found |= more
        return found

    def freed_by(self, pid: int) -> set[int]:
        """Return the sessions that wait for this one and for no session that would stay."""
        freed: set[int] = set()
        while (
            more := {
                one.pid for one in self.waiters.values() if one.behind <= freed | {pid}
            }
            - freed
        ):
            freed |= more
        return freed - {pid}

    def gate(self, among: Iterable[int]) -> Waiter | None:
        """Return the waiting session without which most of the others would not wait, or None.

        It has not got its lock yet: it is the one that loses least.
        """
        found = [
            (len(self.freed_by(pid)), -pid, self.waiters[pid])
            for pid in among
            if pid in self.waiters
            and self.waiters[pid].statement
            and self.freed_by(pid)
        ]
        return max(found)[2] if found else None


def read_tree(context: Context) -> LockTree:
    """Return the lock queues in the evidence; empty where no session waits."""
    tree = LockTree()
    first: Citation | None = None
    for evidence_id, line in evidence_lines(context, "Blocking tree"):
        cited = Citation(evidence_id=evidence_id, quote=bounded(line))
        first = first or cited
        if root := _ROOT.match(line):
            tree.roots.setdefault(int(root[1] or PREPARED), cited)
        elif waiter := _WAITER.match(line):
            pid = int(waiter[1])
            blockers = frozenset(map(int, waiter[2].split(", ")))
            since, begun = waiter[3] or "", waiter[4] or ""
            known = Waiter(pid, blockers, since, begun, waiter[5], cited)
            tree.waiters.setdefault(pid, known)
    return LockTree(tree.roots, tree.waiters, first)
