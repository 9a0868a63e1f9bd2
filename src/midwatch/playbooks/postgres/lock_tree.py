"""The lock queues as the evidence shows them now: who holds, who waits, and who would be free without whom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context
from midwatch.playbooks.base import bounded
from midwatch.playbooks.waiting_sessions import Queues, Waiting

PREPARED = 0
"""The pid of a prepared transaction among the blockers: it has no process."""

_WAITER = re.compile(
    r"pid (\d+) has waited .*? for pid (\d+(?:, \d+)*)"
    r"(?P<more> and \d+ more)?"
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
class Waiter(Waiting):
    """A session that waits.

    Where others wait for it, `since` is the start of its transaction, `begun` that of its statement if it is later.
    """

    since: str
    begun: str


@dataclass(frozen=True, slots=True)
class LockTree(Queues[Waiter]):
    """The waits of one moment. With `cut` the list was too long: who holds a lock may not be named in it."""

    cut: bool = False


def _statement(rest: str) -> str:
    """Return what a session runs if that needs a lock that keeps everybody out, such as `ALTER TABLE`."""
    match = _STRONG.match(rest)
    if match is None or _CONCURRENT.search(match["more"]):
        return ""
    return f"{match[1]}{match[2] or ''}".upper()


def _lines(context: Context) -> Iterator[tuple[str, str]]:
    for evidence in context.evidence:
        if evidence.available and "Blocking tree" in evidence.title:
            for line in evidence.text.splitlines():
                yield evidence.id, line


def read_tree(context: Context) -> LockTree:
    """Return the lock queues in the evidence; empty where no session waits."""
    tree = LockTree()
    first: Citation | None = None
    root_pid, cut, unnamed = PREPARED, False, False
    for evidence_id, raw in _lines(context):
        line = raw.strip()
        cited = Citation(evidence_id=evidence_id, quote=bounded(line))
        first = first or cited
        if root := _ROOT.match(line):
            root_pid = int(root[1] or PREPARED)
            tree.roots.setdefault(root_pid, cited)
        elif waiter := _WAITER.match(line):
            pid = int(waiter[1])
            blockers = frozenset(map(int, waiter[2].split(", ")))
            since, begun = waiter[4] or "", waiter[5] or ""
            before = tree.waiters.get(pid)
            if waiter["more"] and raw.startswith("  pid "):  # right under its root
                unnamed = True
                blockers |= (before.behind if before else frozenset()) | {root_pid}
            elif before:
                continue
            said = _statement(waiter[6])
            tree.waiters[pid] = Waiter(pid, blockers, said, cited, since, begun)
        elif raw.startswith(("… and ", "[…")):
            cut = True
    return LockTree(tree.roots, tree.waiters, first, cut and unnamed)
