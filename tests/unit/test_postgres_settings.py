"""Settings of the postgres subject, and what a kind's settings change of its invariants."""

from __future__ import annotations

import subprocess
import sys

import pytest

from midwatch.errors import SettingsError
from midwatch.model import Severity, Unit
from midwatch.settings import InvariantSettings
from midwatch.subjects.base import configure
from midwatch.subjects.postgres import INVARIANTS, PostgresSettings, PostgresSubject


def override(**values: object) -> InvariantSettings:
    return InvariantSettings.model_validate(values)


def test_overrides_are_read_in_the_invariants_unit() -> None:
    changed = configure(
        INVARIANTS,
        {
            "blocked_sessions": override(limit="1m", severity="info", **{"for": "5s"}),
            "connections": override(limit="80%"),
            "inactive_slots": override(limit="2GiB"),
            "deadlocks": override(enabled=False),
        },
        "subjects.db",
    )
    found = {one.id: one for one in changed}
    assert "deadlocks" not in found and len(changed) == len(INVARIANTS) - 1
    blocked = found["blocked_sessions"]
    assert (blocked.limit, blocked.hold_for, blocked.severity) == (60, 5, Severity.INFO)
    assert found["connections"].limit == 0.8
    assert found["inactive_slots"].limit == 2 * 1024**3
    assert found["long_queries"] is next(
        i for i in INVARIANTS if i.id == "long_queries"
    )


@pytest.mark.parametrize(
    ("name", "given", "path", "note"),
    [
        (
            "blocked_session",
            {},
            "subjects.db.invariants.blocked_session",
            "did you mean blocked_sessions",
        ),
        ("zzz", {}, "subjects.db.invariants.zzz", "one of blocked_sessions"),
        (
            "connections",
            {"limit": "a lot"},
            "subjects.db.invariants.connections.limit",
            "use 90%",
        ),
        (
            "connections",
            {"limit": "nan"},
            "subjects.db.invariants.connections.limit",
            "finite",
        ),
        (
            "reachable",
            {"limit": 3},
            "subjects.db.invariants.reachable.limit",
            "has no limit",
        ),
    ],
)
def test_wrong_override_names_its_path_and_the_fix(
    name: str, given: dict[str, object], path: str, note: str
) -> None:
    with pytest.raises(SettingsError) as wrong:
        configure(INVARIANTS, {name: override(**given)}, "subjects.db")
    assert wrong.value.path == path
    assert note in wrong.value.one_line()


def test_every_invariant_documents_itself() -> None:
    assert len({one.id for one in INVARIANTS}) == len(INVARIANTS) == 14
    for one in INVARIANTS:
        assert one.title and one.description.endswith(".")
        assert (one.limit is None) == (one.unit is Unit.NONE)


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:p%zzsecret@h/d", "host=h pasword=secret", "://"]
)
def test_dsn_that_is_not_understood_is_not_repeated(dsn: str) -> None:
    settings = PostgresSettings.model_validate({"name": "db", "dsn": dsn})
    with pytest.raises(SettingsError) as wrong:
        PostgresSubject(settings)
    assert wrong.value.path == "subjects.db.dsn"
    assert "secret" not in wrong.value.one_line() + repr(settings)


@pytest.mark.parametrize(
    ("dsn", "secrets"),
    [
        ("postgresql+psycopg://u:a%20b@h/d", {"a b", "a%20b"}),
        (
            "host=h user=u password='it''s' dbname=d".replace("''", "\\'"),
            {"it's", "it%27s"},
        ),
        ("postgresql:///d?host=/tmp&password=x%2fy", {"x/y", "x%2fy", "x%2Fy"}),
        ("postgresql://u@h/d", set()),
    ],
)
def test_passwords_are_secrets_in_every_form(dsn: str, secrets: set[str]) -> None:
    settings = PostgresSettings.model_validate({"name": "db", "dsn": dsn})
    assert set(PostgresSubject(settings).secrets) == secrets


@pytest.mark.integration
def test_the_kind_is_listed_without_the_driver() -> None:
    code = (
        "import sys; from midwatch.subjects.postgres import PostgresSubject as P;"
        "assert P.default_invariants and P.settings_model;"
        "sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
