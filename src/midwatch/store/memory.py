"""Past incidents: resolved tickets from which later ones can be understood, found by key and by the words of their text.

A ticket is one once it is resolved and has an answered diagnosis or was resolved by hand. Each search looks at
a bounded number of them, whatever their number. SQLite finds words by FTS5, PostgreSQL by an index of tsvectors; a
SQLite without FTS5 finds by key alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, or_, select, text
from sqlalchemy.exc import OperationalError

from midwatch.model import Grounded, Json, Key, Ticket, TicketStatus
from midwatch.store.engine import Transaction
from midwatch.store.protocol import Past
from midwatch.store.rows import ticket_of
from midwatch.store.schema import (
    RESOLVED_BY_OBSERVATION,
    diagnoses,
    past_incidents,
    select_tickets,
    tickets,
)

# ------------------------------------------------------------------ words (pure)

_WORD = re.compile(r"[^\W_]{3,40}")
_COMMON = frozenset(
    "about above after all also and any are because been before below being but can cannot could did does down during"
    " each for from had has have her his how into its just more most nor not now off once only other our out over own"
    " same she should since some still such than that the their them then there these they this those through too"
    " under until very was were what when where which while who why will with within without would you your"
    " utc none null true false".split()
)
_MOST_STORED = 300
_MOST_SEARCHED = 24
_PER_WORD = 40
_PER_KEY = 20
"""Words that are stored of an incident and searched at once, and candidates by each word and by each kind of key."""
_MOST_OF_A_KEY = 3
"""Incidents of one key in a result: a hundred openings of one ticket teach little more than the latest."""
_LEAST_WORDS = 2
_LEAST_SHARE = 0.4
"""What an incident of another invariant must share to be like the present one: words, and weight of the known words."""


def words_of(texts: Iterable[str], most: int = _MOST_STORED) -> list[str]:
    """Return the distinct words of texts in lower case, in order, without those that say nothing."""
    found: dict[str, None] = {}
    for one in texts:
        for match in _WORD.finditer(one[:20_000].lower()):
            if (word := match[0]) not in _COMMON:
                found[word] = None
            if len(found) == most:
                return list(found)
    return list(found)


def texts_of(row: Any, answer: Json | None) -> list[str]:
    """Return the texts of an incident whose words are searched; `row` is one of `tickets`."""
    answer = answer or {}
    facts = [str(value) for value in row.facts.values() if isinstance(value, str)]
    return [
        row.message,
        f"{row.invariant} {row.component} {row.subject}",
        str(answer.get("root_cause") or ""),
        str(answer.get("summary") or ""),
        row.resolution or "",
        *facts,
    ]


@dataclass(slots=True)
class _Candidate:
    id: int
    key: Key
    words: frozenset[str]
    score: float = 0.0


# ------------------------------------------------------------------ remember


def remember(tx: Transaction, ids: Sequence[int]) -> None:
    """Add those of the tickets that are past incidents now; one that is known is brought up to date."""
    if not ids:
        return
    rows = tx.all(
        select(tickets, diagnoses.c.answer)
        .outerjoin(
            diagnoses,
            and_(
                diagnoses.c.id == tickets.c.diagnosis_id,
                diagnoses.c.outcome == "answered",
            ),
        )
        .where(
            tickets.c.id.in_(ids),
            tickets.c.status == TicketStatus.RESOLVED.value,
            or_(
                diagnoses.c.id.is_not(None),
                tickets.c.resolution != RESOLVED_BY_OBSERVATION,
            ),
        )
    )
    indexed = bool(rows) and has_words(tx)
    for row in rows:
        words = " ".join(words_of(texts_of(row, row.answer)))
        values = {
            "subject": row.subject,
            "invariant": row.invariant,
            "component": row.component,
            "words": words,
        }
        tx.insert_or_update(past_incidents, {"ticket_id": row.id, **values}, values)
        if indexed:
            word_row = {"id": row.id, "words": words}
            tx.execute(text("DELETE FROM past_words WHERE rowid = :id"), word_row)
            tx.execute(
                text("INSERT INTO past_words (rowid, words) VALUES (:id, :words)"),
                word_row,
            )


def create_words(connection: Connection) -> None:
    """Make the table of words in a new SQLite database; without FTS5 there is none."""
    try:
        connection.execute(text("CREATE VIRTUAL TABLE past_words USING fts5(words)"))
    except OperationalError:
        pass


def has_words(tx: Transaction) -> bool:
    """Return whether there is a table of words beside `past_incidents`: on SQLite with FTS5 alone."""
    if tx.connection.dialect.name != "sqlite":
        return False
    try:
        tx.execute(text("SELECT rowid FROM past_words LIMIT 0"))
    except OperationalError:  # there is no such table, or no such module
        return False
    return True


# ------------------------------------------------------------------ search


def past(tx: Transaction, similar_to: Sequence[Ticket], limit: int = 5) -> list[Past]:
    """Return past incidents like these tickets, the best match first."""
    keys = list(dict.fromkeys(ticket.key for ticket in similar_to))[:_MOST_SEARCHED]
    texts = [ticket.message for ticket in similar_to]
    texts += [f"{key.component} {key.invariant}" for key in keys]
    texts += [
        value
        for ticket in similar_to
        for value in ticket.facts.values()
        if isinstance(value, str)
    ]
    return _found(tx, keys, words_of(texts, _MOST_SEARCHED), limit) if keys else []


def search_past(tx: Transaction, query: str, limit: int = 5) -> list[Past]:
    """Return past incidents whose text has words of `query`, the best match first."""
    return _found(tx, [], words_of([query], _MOST_SEARCHED), limit)


def _found(
    tx: Transaction, keys: Sequence[Key], words: Sequence[str], limit: int
) -> list[Past]:
    by_word = _ids_by_word(tx, words)
    ids = {id_ for found in by_word.values() for id_ in found} | _ids_by_key(tx, keys)
    rows = tx.all(select(past_incidents).where(past_incidents.c.ticket_id.in_(ids)))
    candidates = [
        _Candidate(
            row.ticket_id,
            Key(row.subject, row.invariant, row.component),
            frozenset(row.words.split()),
        )
        for row in rows
    ]
    hits = {word: len(found) for word, found in by_word.items()}
    best = _best(candidates, keys, hits, limit)
    known = _rows(tx, [one.id for one in best])
    return [_past_of(known[one.id], one.key in keys) for one in best]


def _best(
    candidates: Sequence[_Candidate],
    keys: Sequence[Key],
    hits: dict[str, int],
    limit: int,
) -> list[_Candidate]:
    """Return the candidates that are like the present, the best first: by key, by words, then the newest.

    A rare word weighs more; one that no past incident has counts for nothing. `hits` has the number of
    candidates by each word.
    """
    weight = {word: 1 / math.log2(2 + count) for word, count in hits.items() if count}
    whole = sum(weight.values()) or 1.0
    least = _LEAST_WORDS if keys else 1
    chosen = []
    for one in candidates:
        shared = one.words & weight.keys()
        share = sum(weight[word] for word in shared) / whole
        kin = _kinship(one.key, keys)
        if kin or (len(shared) >= least and share >= (_LEAST_SHARE if keys else 0)):
            one.score = kin + share
            chosen.append(one)
    chosen.sort(key=lambda one: (-one.score, -one.id))
    seen: Counter[Key] = Counter()
    kept = []
    for one in chosen:
        seen[one.key] += 1
        if seen[one.key] <= _MOST_OF_A_KEY:
            kept.append(one)
    return kept[: max(limit, 0)]


def _kinship(key: Key, keys: Sequence[Key]) -> float:
    """Return how near a key is to the present ones: the same, of the same subject and invariant, of the invariant."""
    if key in keys:
        return 4.0
    if any(
        (key.subject, key.invariant) == (one.subject, one.invariant) for one in keys
    ):
        return 2.5
    return 1.0 if any(key.invariant == one.invariant for one in keys) else 0.0


def _ids_by_key(tx: Transaction, keys: Sequence[Key]) -> set[int]:
    """Return the newest incidents of each key, of each subject and invariant, and of each invariant."""
    table = past_incidents.c
    of_subject = {
        (key.subject, key.invariant): and_(
            table.subject == key.subject, table.invariant == key.invariant
        )
        for key in keys
    }
    conditions = [
        *(
            and_(
                of_subject[key.subject, key.invariant], table.component == key.component
            )
            for key in keys
        ),
        *of_subject.values(),
        *(table.invariant == one for one in sorted({key.invariant for key in keys})),
    ]
    return {
        row.ticket_id
        for condition in conditions
        for row in tx.all(
            select(table.ticket_id)
            .where(condition)
            .order_by(table.ticket_id.desc())
            .limit(_PER_KEY)
        )
    }


_BY_WORD_SQLITE = text(
    "SELECT rowid FROM past_words WHERE past_words MATCH :word ORDER BY rowid DESC LIMIT :most"
)
_BY_WORD_POSTGRES = text(
    "SELECT word, found.ticket_id FROM unnest(CAST(:words AS text[])) AS word CROSS JOIN LATERAL"
    " (SELECT ticket_id FROM past_incidents WHERE array_to_tsvector(string_to_array(words, ' '))"
    " @@ CAST(word AS tsquery) LIMIT :most) AS found"
)


def _ids_by_word(tx: Transaction, words: Sequence[str]) -> dict[str, list[int]]:
    """Return incidents by each word, a bounded number of them."""
    found: dict[str, list[int]] = {word: [] for word in words}
    if tx.connection.dialect.name == "postgresql":
        # Of a frequent word the index returns about so many entries, and not all.
        tx.execute(text("SELECT set_config('gin_fuzzy_search_limit', '1000', true)"))
        values: Json = {"words": list(words), "most": _PER_WORD}
        for row in tx.all(_BY_WORD_POSTGRES, values) if words else ():
            found[row.word].append(row.ticket_id)
    elif has_words(tx):
        for word in words:
            query = {"word": f'"{word}"', "most": _PER_WORD}
            found[word] = [row.rowid for row in tx.all(_BY_WORD_SQLITE, query)]
    return found


def _rows(tx: Transaction, ids: Sequence[int]) -> dict[int, Row[Any]]:
    """Return tickets with their answered diagnosis, by id."""
    statement = (
        select_tickets()
        .add_columns(
            diagnoses.c.answer,
            diagnoses.c.confidence,
            diagnoses.c.verified_claims,
            diagnoses.c.total_claims,
        )
        .outerjoin(
            diagnoses,
            and_(
                diagnoses.c.id == tickets.c.diagnosis_id,
                diagnoses.c.outcome == "answered",
            ),
        )
        .where(tickets.c.id.in_(ids))
    )
    return {row.id: row for row in tx.all(statement)}


def _past_of(row: Row[Any], same: bool) -> Past:
    answer, claims = row.answer or {}, row.total_claims
    grounded = None if claims is None else Grounded(row.verified_claims, claims)
    verdict = answer.get("verdict")
    return Past(
        ticket_of(row),
        answer.get("summary"),
        answer.get("root_cause"),
        same,
        verified=verdict == "identified"
        and grounded is not None
        and 0 < grounded.total <= 2 * grounded.verified,
        verdict=verdict,
        confidence=row.confidence,
        grounded=grounded,
    )
