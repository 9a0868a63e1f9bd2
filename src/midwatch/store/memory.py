"""Past incidents: resolved tickets from which later ones can be understood, found by key and by the words of their text.

A ticket is one once it is resolved and has an answered diagnosis or was resolved by hand. Each search looks at
a bounded number of them, whatever their number. SQLite finds words by FTS5, PostgreSQL by a table that has the newest incidents of
each word; a SQLite without FTS5 finds by key alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import nlargest
from itertools import chain, islice
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    Connection,
    Row,
    and_,
    bindparam,
    or_,
    select,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.sql.expression import TextClause

from midwatch.model import Grounded, Json, Key, Ticket
from midwatch.store.engine import Transaction
from midwatch.store.protocol import Past
from midwatch.store.rows import ticket_of
from midwatch.store.schema import (
    RESOLVED,
    RESOLVED_BY_OBSERVATION,
    diagnoses,
    dump_json,
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
_MOST_COMPARED = 50
"""Words that are stored of an incident and searched at once, candidates by each word and by each kind of key, and how many of
both are compared in full."""
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


_KeyParts = tuple[str, str, str]


@dataclass(slots=True)
class _Candidate:
    id: int
    key: _KeyParts
    words: set[str]
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
            RESOLVED,
            or_(
                diagnoses.c.id.is_not(None),
                tickets.c.resolution != RESOLVED_BY_OBSERVATION,
            ),
        )
    )
    for row in rows:
        words = words_of(texts_of(row, row.answer))
        values = {
            "subject": row.subject,
            "invariant": row.invariant,
            "component": row.component,
            "words": " ".join(words),
        }
        tx.insert_or_update(past_incidents, {"ticket_id": row.id, **values}, values)
        _index_words(tx, row.id, words)


_ADD_WORDS = text(
    "INSERT INTO past_words (word, ticket_id) SELECT unnest(CAST(:words AS text[])), :id ON CONFLICT DO NOTHING"
)
_FORGET_WORDS = text(
    "WITH newest AS (SELECT one AS word, (SELECT ticket_id FROM past_words WHERE word = one"
    " ORDER BY ticket_id DESC OFFSET :most - 1 LIMIT 1) AS least FROM unnest(CAST(:words AS text[])) AS one),"
    " older AS (SELECT p.word, p.ticket_id FROM newest JOIN past_words AS p ON p.word = newest.word"
    " AND p.ticket_id < newest.least FOR UPDATE OF p SKIP LOCKED)"
    " DELETE FROM past_words AS p USING older WHERE p.word = older.word AND p.ticket_id = older.ticket_id"
)
"""A search reads the newest of a word alone, so that others would only take space."""
_FORGET_EVERY = 16


def _index_words(tx: Transaction, id_: int, words: Sequence[str]) -> None:
    if tx.connection.dialect.name == "postgresql":
        values: Json = {"id": id_, "words": sorted(words)}
        tx.execute(_ADD_WORDS, values)
        if id_ % _FORGET_EVERY == 0:
            tx.execute(_FORGET_WORDS, {**values, "most": _PER_WORD})
    elif has_words(tx):
        row = {"id": id_, "words": " ".join(words)}
        tx.execute(text("DELETE FROM past_words WHERE rowid = :id"), row)
        insert = "INSERT INTO past_words (rowid, words) VALUES (:id, :words)"
        tx.execute(text(insert), row)


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

_IDS: BindParameter[Any] = bindparam("p_ids", expanding=True)
_SELECT_CANDIDATES = select(past_incidents).where(past_incidents.c.ticket_id.in_(_IDS))
_SELECT_PAST = (
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
    .where(tickets.c.id.in_(_IDS))
)
"""Tickets with their answered diagnosis."""


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
    of_keys = [*_by_key(keys, tx.connection.dialect.name == "sqlite")]
    found = _newest(tx, [*of_keys, *_by_word(tx, words)])
    by_key = [*chain.from_iterable(found[: len(of_keys)])]
    by_word = dict(zip(words, chain.from_iterable(found[len(of_keys) :])))
    weight = _weights(by_word)
    candidates = _read(tx, _candidates(by_word, by_key, weight, limit), weight)
    best = _best(candidates, keys, weight, limit)
    rows = tx.all(_SELECT_PAST, {"p_ids": [one.id for one in best]}) if best else ()
    known = {row.id: row for row in rows}
    same = _Kin(keys).keys
    return [_past_of(known[one.id], one.key in same) for one in best]


def _weights(by_word: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return what each word counts for that a past incident has: a rare one more."""
    return {
        word: 1 / math.log2(2 + len(found)) for word, found in by_word.items() if found
    }


def _candidates(
    by_word: Mapping[str, Sequence[int]],
    by_key: Sequence[Sequence[int]],
    weight_of: Mapping[str, float],
    limit: int,
) -> list[int]:
    """Return the incidents to compare in full: those with the most weight of the words, of each key and of all."""
    weight: defaultdict[int, float] = defaultdict(float)
    for word, found in by_word.items():
        for id_ in found:
            weight[id_] += weight_of[word]
    most = max(_MOST_COMPARED, 4 * limit)

    def best(ids: Iterable[int], count: int) -> list[int]:
        return nlargest(count, ids, key=lambda id_: (weight.get(id_, 0.0), id_))

    of_keys = [id_ for found in by_key for id_ in best(found, 2 * _MOST_OF_A_KEY)]
    return list({*best(weight, most), *list(dict.fromkeys(of_keys))[:most]})


def _read(
    tx: Transaction, ids: Sequence[int], words: Collection[str]
) -> list[_Candidate]:
    """Return the candidates with these ids, with those of the words that they have."""
    rows = tx.all(_SELECT_CANDIDATES, {"p_ids": ids}) if ids else ()
    searched = set(words)
    return [
        _Candidate(
            row.ticket_id,
            (row.subject, row.invariant, row.component),
            searched.intersection(row.words.split()),
        )
        for row in rows
    ]


def _best(
    candidates: Sequence[_Candidate],
    keys: Sequence[Key],
    weight: Mapping[str, float],
    limit: int,
) -> list[_Candidate]:
    """Return the candidates that are like the present, the best first: by key, by words, then the newest.

    `weight` has what each of the words that are known counts for.
    """
    kin = _Kin(keys)
    whole = sum(weight.values()) or 1.0
    least = _LEAST_WORDS if keys else 1
    least_share = _LEAST_SHARE if keys else 0.0
    chosen = []
    for one in candidates:
        share = sum(weight[word] for word in one.words) / whole
        near = kin.near(one.key)
        if near or (len(one.words) >= least and share >= least_share):
            one.score = near + share
            chosen.append(one)
    chosen.sort(key=lambda one: (-one.score, -one.id))
    seen: Counter[_KeyParts] = Counter()
    kept = []
    for one in chosen:
        seen[one.key] += 1
        if seen[one.key] <= _MOST_OF_A_KEY:
            kept.append(one)
    return kept[: max(limit, 0)]


class _Kin:
    """How near a key is to the present ones: the same, of the same subject and invariant, of the invariant."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = {(one.subject, one.invariant, one.component) for one in keys}
        self._of_subject = {key[:2] for key in self.keys}
        self._invariants = {key[1] for key in self.keys}

    def near(self, key: _KeyParts) -> float:
        if key in self.keys:
            return 4.0
        if key[:2] in self._of_subject:
            return 2.5
        return 1.0 if key[1] in self._invariants else 0.0


# The same of both databases: for each value that is wanted, the newest incidents that match it, in the order of the searches and of
# their values. PostgreSQL would read all incidents from the newest on for a value that none has, if it knew that one value is asked for:
# the order is then that of their ids. So it is given a range, and an order that only the index of the value has.
_SQLITE = (
    "SELECT {place} AS place, wanted.key AS key, (SELECT json_group_array(id) FROM ({newest})) AS ids"
    " FROM json_each(:wanted_{place}) AS wanted"
)
_POSTGRES = (
    "SELECT {place} AS place, wanted.key AS key, array(SELECT id FROM ({newest}) AS newest) AS ids"
    " FROM jsonb_array_elements(CAST(:wanted_{place} AS jsonb)) WITH ORDINALITY AS wanted(value, key)"
)
_NEWEST_OF_KEY = f"SELECT ticket_id AS id FROM past_incidents WHERE {{same}} ORDER BY {{order}} LIMIT {_PER_KEY}"
_KINDS_OF_KEY = (
    ("subject", "invariant", "component"),
    ("subject", "invariant"),
    ("invariant",),
)
"""Columns of which a past incident shares the values, the nearest kind first."""
_WITH_WORD_SQLITE = (
    "SELECT rowid AS id FROM past_words WHERE past_words MATCH '\"' || json_extract(wanted.value, '$[0]') || '\"'"
    f" ORDER BY rowid DESC LIMIT {_PER_WORD}"
)
_WITH_WORD_POSTGRES = (
    "SELECT ticket_id AS id FROM past_words WHERE word >= wanted.value->>0 AND word <= wanted.value->>0"
    f" ORDER BY word DESC, ticket_id DESC LIMIT {_PER_WORD}"
)


class _Search(NamedTuple):
    newest: str
    """SQL for the ids of the newest incidents that match one value of `wanted`."""
    wanted: Sequence[Sequence[str]]


@lru_cache(maxsize=16)
def _statement(queries: tuple[str, ...], sqlite: bool) -> TextClause:
    """Return one statement for several queries: a round trip takes longer than most of them."""
    template = _SQLITE if sqlite else _POSTGRES
    parts = (
        template.format(place=place, newest=newest)
        for place, newest in enumerate(queries)
    )
    return text(f"{' UNION ALL '.join(parts)} ORDER BY place, key")


def _newest(tx: Transaction, searches: Sequence[_Search]) -> list[list[list[int]]]:
    """Return the ids that each search finds for each of its values."""
    if not searches:
        return []
    sqlite = tx.connection.dialect.name == "sqlite"
    statement = _statement(tuple(one.newest for one in searches), sqlite)
    rows = tx.all(
        statement,
        {f"wanted_{n}": dump_json(one.wanted) for n, one in enumerate(searches)},
    )
    ids = iter(json.loads(row.ids) if sqlite else row.ids for row in rows)
    return [[*islice(ids, len(one.wanted))] for one in searches]


def _by_key(keys: Sequence[Key], sqlite: bool) -> Iterator[_Search]:
    """Yield the searches for each key, for each subject and invariant, and for each invariant, in this order."""
    value = "json_extract(wanted.value, '$[{}]')" if sqlite else "wanted.value->>{}"
    for kind in _KINDS_OF_KEY if keys else ():
        values = ", ".join(value.format(place) for place in range(len(kind)))
        same = f"({', '.join(kind)}) {{}} ({values})"
        if sqlite:
            same, order = same.format("="), "ticket_id DESC"
        else:
            same = f"{same.format('>=')} AND {same.format('<=')}"
            order = ", ".join(f"{name} DESC" for name in (*kind, "ticket_id"))
        wanted = dict.fromkeys(
            tuple(getattr(key, name) for name in kind) for key in keys
        )
        yield _Search(_NEWEST_OF_KEY.format(same=same, order=order), list(wanted))


def _by_word(tx: Transaction, words: Sequence[str]) -> Iterator[_Search]:
    """Yield the search for each word, unless the database has none."""
    wanted = [[word] for word in words]
    if words and tx.connection.dialect.name == "postgresql":
        yield _Search(_WITH_WORD_POSTGRES, wanted)
    elif words and has_words(tx):
        yield _Search(_WITH_WORD_SQLITE, wanted)


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
