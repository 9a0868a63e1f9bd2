"""Every error of the drivers is mapped."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from psycopg import errors as sqlstates
from sqlalchemy.exc import DBAPIError

from midwatch.errors import (
    MidwatchError,
    SchemaMismatch,
    SettingsError,
    StoreBusy,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)
from midwatch.store import errors as mapping
from midwatch.store.engine import parse_database

# Results that are not errors, and the names of what an authorizer may be asked.
NO_ERRORS = {"OK", "ROW", "DONE", "NOTICE", "WARNING", "DENY", "IGNORE"}


def tree(root: type[DBAPIError]) -> list[type[DBAPIError]]:
    below = [each for child in root.__subclasses__() for each in tree(child)]
    return [*root.__subclasses__(), *below]


def states() -> dict[str, type[psycopg.Error]]:
    found = (each for each in vars(sqlstates).values() if isinstance(each, type))
    return {
        each.sqlstate: each
        for each in found
        if issubclass(each, psycopg.Error) and each.sqlstate
    }


def wrapped(error: Exception) -> DBAPIError:
    kind = next(
        (kind for kind in tree(DBAPIError) if kind.__name__ == type(error).__name__),
        DBAPIError,
    )
    return kind("SELECT secret", {"value": "hunter2"}, error)


def test_every_class_of_sqlalchemy_is_mapped() -> None:
    names = {kind.__name__ for kind in tree(DBAPIError)}
    assert names == set(mapping._WITHOUT_STATE)
    for name in names:
        error = mapping.map_database_error(wrapped(getattr(psycopg, name)("lost")))
        assert type(error) is mapping._WITHOUT_STATE[name]
        assert "hunter2" not in error.one_line() and "SELECT" not in error.one_line()


def test_every_class_of_sqlstate_is_mapped() -> None:
    assert {state[:2] for state in states()} - set(mapping._POSTGRES) == set()
    for state, kind in states().items():
        mapped = mapping.map_database_error(wrapped(kind("no")))
        assert isinstance(mapped, MidwatchError) and mapped.hint, state


@pytest.mark.parametrize(
    ("state", "expected"),
    {
        "08006": StoreUnavailable,
        "57P01": StoreUnavailable,
        "57P03": StoreUnavailable,
        "53300": StoreUnavailable,
        "25006": StoreUnavailable,
        "53100": StoreFull,
        "40001": StoreBusy,
        "40P01": StoreBusy,
        "55P03": StoreBusy,
        "57014": StoreBusy,
        "42P01": SchemaMismatch,
        "42703": SchemaMismatch,
        "42501": StoreRejected,
        "23505": StoreRejected,
        "28P01": StoreRejected,
        "3D000": StoreRejected,
    }.items(),
)
def test_states_of_postgres(state: str, expected: type[MidwatchError]) -> None:
    assert type(mapping.map_database_error(wrapped(states()[state]("no")))) is expected


def test_every_result_code_of_sqlite_is_mapped() -> None:
    codes = {
        name.removeprefix("SQLITE_"): getattr(sqlite3, name)
        for name in dir(sqlite3)
        if name.startswith("SQLITE_") and isinstance(getattr(sqlite3, name), int)
    }
    # Extended codes belong to the error in their low byte; sqlite3.dll's other constants have
    # names of their own. sqlite.org/rescode.html lists 28 primary errors below 100.
    primary = {code for name, code in codes.items() if code in mapping._SQLITE}
    documented = set(range(1, 27)) - {codes["NOTICE"], codes["WARNING"]}
    assert documented <= primary
    for code in documented:
        error = sqlite3.OperationalError("no")
        error.sqlite_errorcode = code | 5 << 8
        mapped = mapping.map_database_error(wrapped(error))
        assert type(mapped) is mapping._SQLITE[code] and mapped.hint


@pytest.mark.parametrize(
    "database",
    [
        "mysql://root:hunter2@host/db",
        "hunter2",
        "postgresql://u:hunter2@host:port/db",
        "",
    ],
)
def test_a_wrong_url_is_shown_without_its_password(database: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_database(database)
    assert "hunter2" not in caught.value.one_line()
    assert "sqlite:///FILE" in caught.value.one_line()
