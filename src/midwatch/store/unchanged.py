"""Save observations that change no ticket: many subjects in one transaction, with one statement for most of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, select, update

from midwatch.model import Json
from midwatch.store.cycles import failed, is_taken, succeeded
from midwatch.store.engine import Transaction, chunks
from midwatch.store.schema import subjects
from midwatch.store.shares_protocol import SavedTogether, Unchanged
from midwatch.store.silences import LAST_CHANGE_OF_SILENCES


def save_unchanged(tx: Transaction, observed: Sequence[Unchanged]) -> SavedTogether:
    """Save observations of different subjects that change no ticket."""
    by_name = {one.subject: one for one in observed}
    stale, taken = set(by_name), set()
    plain: list[str] = []
    others: list[Json] = []
    for chunk in chunks(sorted(by_name)):
        for row in tx.all(_WATCHED, {"names": list(chunk)}):
            one = by_name[row.name]
            if is_taken(row, one.watcher):
                taken.add(row.name)
            elif row.revision == one.revision and one.silences in (
                None,
                row.silences or 0,
            ):
                stale.discard(row.name)
                if one.state is None and one.error is None:
                    plain.append(row.name)
                else:
                    others.append(_unchanged_row(tx, one, row))
    for chunk in chunks(plain):
        tx.execute(_SUCCEEDED, {"at": tx.now, "names": list(chunk)})
    for keys in {tuple(row) for row in others}:
        values: Json = {key: bindparam(key) for key in keys if key != "subject"}
        statement = update(subjects).where(subjects.c.name == bindparam("subject"))
        tx.execute(
            statement.values(values), [row for row in others if tuple(row) == keys]
        )
    return SavedTogether(tx.now, frozenset(stale - taken), frozenset(taken))


_WATCHED = (
    select(
        subjects.c.name,
        subjects.c.revision,
        subjects.c.cycle,
        subjects.c.failures,
        subjects.c.watcher,
        LAST_CHANGE_OF_SILENCES.label("silences"),
    )
    .where(subjects.c.name.in_(bindparam("names", expanding=True)))
    .order_by(subjects.c.name)
    .with_for_update()
)
_SUCCEEDED = (
    update(subjects)
    .where(subjects.c.name.in_(bindparam("names", expanding=True)))
    .values(
        cycle=subjects.c.cycle + 1,
        failures=0,
        last_error=None,
        last_good_at=bindparam("at"),
        last_look_at=bindparam("at"),
    )
)


def _unchanged_row(tx: Transaction, one: Unchanged, row: Any) -> Json:
    """Return the values of a subject's row after an observation that changes no ticket."""
    observed = (
        succeeded(tx, row.cycle + 1)
        if one.error is None
        else {**failed(tx, one.error), "failures": row.failures + 1}
    )
    state = {} if one.state is None else {"state": one.state}
    return {"subject": one.subject, **observed, **state}
