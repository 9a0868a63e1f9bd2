"""The demo's system: a private PostgreSQL with a small shop on it, and its settings."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import yaml

from midwatch.testing.postgres import PrivatePostgres

_TABLES = """
CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL, changed timestamptz DEFAULT now());
INSERT INTO orders SELECT g, 'new' FROM generate_series(1, 2000) g;
"""
# A monitoring role, as it should be: it reads statistics, and connects when nobody else can.
_ROLES = """
CREATE ROLE shop LOGIN;
GRANT ALL ON ALL TABLES IN SCHEMA public TO shop;
CREATE ROLE midwatch LOGIN;
GRANT pg_monitor, pg_use_reserved_connections TO midwatch;
"""
_SERVER: dict[str, str | int | float | bool] = {
    "max_connections": 25,
    "reserved_connections": 5,
    "wal_level": "replica",
    "deadlock_timeout": "200ms",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %u@%d %a ",
}


@contextmanager
def shop() -> Iterator[PrivatePostgres]:
    """A running server with data and roles; it and its files are gone afterwards."""
    with PrivatePostgres(settings=_SERVER) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute("CREATE DATABASE shop")
        with psycopg.connect(server.dsn("shop"), autocommit=True) as admin:
            admin.execute(_TABLES)
            admin.execute(_ROLES)
        yield server


@contextmanager
def customers(server: PrivatePostgres, count: int = 2) -> Iterator[None]:
    """A light workload that goes on, whatever happens to the server."""
    over = threading.Event()
    threads = [
        threading.Thread(target=_buy, args=(server, number, over), daemon=True)
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(5)


def _buy(server: PrivatePostgres, number: int, over: threading.Event) -> None:
    order = 100 + number
    while not over.wait(0.2):
        with suppress(psycopg.Error):
            with psycopg.connect(
                server.dsn("shop", "shop"),
                application_name=f"web-{number}",
                autocommit=True,
                connect_timeout=2,
            ) as connection:
                while not over.wait(0.05):
                    connection.execute(
                        "UPDATE orders SET state = 'new', changed = now() WHERE id = %s",
                        [order],
                    )


def write_settings(server: PrivatePostgres, folder: Path) -> Path:
    """The demo's midwatch.yaml: the limits are low, so that nobody waits for minutes."""
    settings = {
        "database": f"sqlite:///{folder / 'midwatch.db'}",
        "monitor": {"interval": "1s", "group_wait": "2s"},
        "agent": {"poll_interval": "1s"},
        "log": {"format": "json"},
        "subjects": [
            {
                "name": "orders-db",
                "kind": "postgres",
                "dsn": server.dsn("shop", "midwatch"),
                "log_file": str(server.log_file),
                "event_window": "3s",
                "invariants": {
                    "blocked_sessions": {"limit": "2s"},
                    "idle_in_transaction": {"limit": "2s"},
                    "long_queries": {"limit": "2s"},
                    "inactive_slots": {"limit": "20MB", "for": "0s"},
                },
            }
        ],
    }
    file = folder / "midwatch.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return file
