"""An index of the texts of resolved tickets by trigrams, for lists of tickets that have some words.

Resolved tickets are many, and their texts change no more; open ones are few, and are read. On SQLite it is a table of FTS5
(https://sqlite.org/fts5.html#the_trigram_tokenizer), of SQLite 3.34 and later, to which a trigger adds each ticket that resolves. On
PostgreSQL it is an index of arrays (https://www.postgresql.org/docs/current/gin.html), which needs no extension. Without one, and
for words of one or two characters, a list is read in its order until enough has been found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, Select, column, func, select, table, text
from sqlalchemy.exc import OperationalError

from midwatch.store.engine import Transaction

_TRIGRAM = 3
_MOST_FOUND = 2000
"""Tickets that are looked up by id. Where more have the words, the order of the list soon finds enough of them."""


def _texts(row: str = "", character: str = "char") -> str:
    """Return the texts of a ticket in one, as SQL; no word goes over the end of a line."""
    names = ("message", "subject", "invariant", "component")
    texts = [*(f"{row}{name}" for name in names), f"coalesce({row}resolution, '')"]
    return f" || {character}(10) || ".join(texts)


# Only ids are read from it, so it keeps neither texts nor places in them.
_CREATE = (
    "CREATE VIRTUAL TABLE ticket_texts"
    " USING fts5(texts, content='', columnsize=0, detail=none, tokenize='trigram')"
)
_FILL = (
    f"INSERT INTO ticket_texts (rowid, texts) SELECT id, {_texts()}"
    " FROM tickets WHERE status = 'resolved' ORDER BY id"
)
_ADD = f"BEGIN INSERT INTO ticket_texts (rowid, texts) VALUES (new.id, {_texts('new.')}); END"
_TRIGGERS = (
    "CREATE TRIGGER tickets_resolved AFTER UPDATE OF status ON tickets"
    f" WHEN new.status = 'resolved' AND old.status <> 'resolved' {_ADD}",
    "CREATE TRIGGER tickets_inserted_resolved AFTER INSERT ON tickets"
    f" WHEN new.status = 'resolved' {_ADD}",
)


def create_ticket_texts(connection: Connection) -> bool:
    """Make the index in a SQLite database. Return whether there is one now: not without FTS5."""
    try:
        connection.exec_driver_sql(_CREATE)
    except OperationalError:  # there is no such module, or no such tokenizer
        return False
    for trigger in _TRIGGERS:
        connection.exec_driver_sql(trigger)
    return True


def add_resolved_tickets(connection: Connection) -> None:
    """Add the tickets that were resolved before there was an index."""
    connection.exec_driver_sql(_FILL)


_CREATE_TRIGRAMS = """
CREATE FUNCTION midwatch_trigrams(given text) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
SELECT coalesce(array_agg(DISTINCT part), '{}') FROM (
  SELECT sign || lead(sign) OVER signs || lead(sign, 2) OVER signs AS part
  FROM unnest(string_to_array(lower(given), NULL)) WITH ORDINALITY AS each(sign, at) WINDOW signs AS (ORDER BY at)
) AS parts WHERE part IS NOT NULL $$
"""
_RESOLVED = "tickets.status = 'resolved'"
_TRIGRAMS = f"midwatch_trigrams({_texts('tickets.', 'chr')})"


def create_trigrams(connection: Connection) -> None:
    """Make the index in a PostgreSQL database."""
    connection.exec_driver_sql(_CREATE_TRIGRAMS)
    connection.exec_driver_sql(
        f"CREATE INDEX ticket_texts ON tickets USING gin ({_TRIGRAMS}) WHERE {_RESOLVED}"
    )


_table = table("ticket_texts", column("rowid"))


def resolved_with(tx: Transaction, words: Sequence[str]) -> Select[Any] | None:
    """Return the query of the ids of resolved tickets that can have all of some words, in any case.

    It has all that do, and perhaps others: in these, parts of the words stand apart.

    Returns:
        None if there is no index for these words, or if more have them than a list can look up.
    """
    long = [word for word in words if len(word) >= _TRIGRAM]
    if not long:
        return None
    found = _in_trigrams(long) if tx.postgres else _in_table(long)
    some = found.limit(_MOST_FOUND + 1).subquery()
    try:
        count = tx.all(select(func.count()).select_from(some))[0][0]
    except OperationalError:  # there is no such table, or no such module
        return None
    return found if count <= _MOST_FOUND else None


def _in_table(words: Sequence[str]) -> Select[Any]:
    parts = dict.fromkeys(
        word[at : at + _TRIGRAM]
        for word in words
        for at in range(len(word) - _TRIGRAM + 1)
    )
    quoted = ('"' + part.replace('"', '""') + '"' for part in parts)
    matching = text("ticket_texts MATCH :parts").bindparams(parts=" AND ".join(quoted))
    return select(_table.c.rowid).where(matching)


def _in_trigrams(words: Sequence[str]) -> Select[Any]:
    given = {f"word_{at}": word for at, word in enumerate(words)}
    parts = " || ".join(f"midwatch_trigrams(:{name})" for name in given)
    has = text(f"{_RESOLVED} AND {_TRIGRAMS} @> ({parts})").bindparams(**given)
    return select(column("id", BigInteger)).select_from(table("tickets")).where(has)
