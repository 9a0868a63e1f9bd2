"""A command subject for MariaDB: `mariadb_watch.py SOCKET` prints what is broken, and the sessions as evidence."""

from __future__ import annotations

import json
import subprocess
import sys

LONGEST_WAIT = 2  # seconds
FULL = 0.9
SESSIONS = """
SELECT p.id, p.user, p.command, p.time AS seconds, p.state, IFNULL(t.trx_state, '') AS transaction,
 IFNULL(TIMESTAMPDIFF(SECOND, t.trx_started, NOW()), '') AS open_for, IFNULL(LEFT(p.info, 120), '') AS statement
FROM information_schema.processlist p LEFT JOIN information_schema.innodb_trx t ON t.trx_mysql_thread_id = p.id
WHERE p.id <> CONNECTION_ID() AND p.user <> 'system user' ORDER BY p.time DESC LIMIT 30"""
WAITS = """
SELECT r.trx_mysql_thread_id AS waits, b.trx_mysql_thread_id AS blocked_by, l.lock_table, l.lock_mode
FROM information_schema.innodb_lock_waits w
JOIN information_schema.innodb_trx r ON r.trx_id = w.requesting_trx_id
JOIN information_schema.innodb_trx b ON b.trx_id = w.blocking_trx_id
JOIN information_schema.innodb_locks l ON l.lock_id = w.requested_lock_id LIMIT 30"""
BY_USER = "SELECT user, COUNT(*) AS sessions FROM information_schema.processlist GROUP BY user ORDER BY 2 DESC"
STATUS = (
    "SELECT variable_name, variable_value FROM information_schema.global_status WHERE variable_name IN "
    "('THREADS_CONNECTED','ABORTED_CONNECTS','CONNECTION_ERRORS_MAX_CONNECTIONS','UPTIME','SLOW_QUERIES')"
)


def main(socket: str) -> None:
    """Print the report of one MariaDB server."""
    violations: list[dict[str, object]] = []

    def broken(invariant: str, message: str, severity: str = "critical") -> None:
        violations.append(
            {
                "invariant": invariant,
                "component": "mariadb",
                "message": message,
                "severity": severity,
            }
        )

    try:
        sessions = _rows(socket, SESSIONS)
    except subprocess.CalledProcessError as error:
        broken("reachable", str(error.stderr).strip()[:300])
        print(json.dumps({"violations": violations, "covered": ["reachable"]}))
        return
    waiting = [one for one in sessions if _waits(one)]
    if waiting:
        worst = max(waiting, key=lambda one: int(one["seconds"]))
        broken(
            "lock_waits",
            f"{len(waiting)} sessions wait for a lock, the longest (id {worst['id']}) for {worst['seconds']} s",
        )
    limit = int(_rows(socket, "SELECT @@max_connections AS most")[0]["most"])
    connected = sum(int(one["sessions"]) for one in _rows(socket, BY_USER))
    if connected > limit * FULL:
        broken("connections", f"{connected} of {limit} connections are used")
    for one in sessions:
        if one["command"] == "Query" and int(one["seconds"]) > 5 and not _waits(one):
            text = f"id {one['id']} of {one['user']} runs for {one['seconds']} s"
            broken("long_queries", text, "warning")
            break
    evidence = [
        {"title": title, "text": _table(_rows(socket, statement))}
        for title, statement in (
            ("Sessions", SESSIONS),
            ("Row lock waits", WAITS),
            ("Sessions by user", BY_USER),
            ("Status", STATUS),
        )
    ]
    print(json.dumps({"violations": violations, "evidence": evidence}))


def _waits(session: dict[str, str]) -> bool:
    waits = "lock" in session["state"] or session["transaction"] == "LOCK WAIT"
    return waits and int(session["seconds"]) >= LONGEST_WAIT


def _rows(socket: str, statement: str) -> list[dict[str, str]]:
    done = subprocess.run(
        ["mariadb", "--no-defaults", "-u", "root", "-S", socket, "-B", "-e", statement],
        capture_output=True,
        text=True,
        check=True,
        timeout=5,
    )
    head, *rows = [line.split("\t") for line in done.stdout.splitlines()] or [[]]
    return [dict(zip(head, row, strict=False)) for row in rows]


def _table(rows: list[dict[str, str]]) -> str:
    lines = [
        ", ".join(f"{name} {value}" for name, value in row.items()) for row in rows
    ]
    return "\n".join(lines) or "none"


if __name__ == "__main__":
    main(sys.argv[1])
