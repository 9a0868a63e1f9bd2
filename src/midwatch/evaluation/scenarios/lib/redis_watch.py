"""A command subject for Redis: `redis_watch.py PORT` prints what is broken, and its state as evidence."""

from __future__ import annotations

import json
import subprocess
import sys
import time

FULL = 0.9
SLOW_MICROSECONDS = 50_000
RECENT = 60  # seconds


def main(port: str) -> None:
    """Print the report of one Redis server."""
    violations: list[dict[str, object]] = []

    def broken(invariant: str, message: str) -> None:
        violations.append(
            {"invariant": invariant, "component": f"redis:{port}", "message": message}
        )

    try:
        info = _info(port)
    except subprocess.CalledProcessError as error:
        broken("reachable", str(error.stderr or error.stdout).strip()[:300])
        print(json.dumps({"violations": violations, "covered": ["reachable"]}))
        return
    most, used = int(info["maxmemory"]), int(info["used_memory"])
    if most and used > most * FULL:
        broken(
            "memory",
            f"{used:,} of {most:,} bytes are used; policy {info['maxmemory_policy']}",
        )
    if info.get("master_link_status") == "down":
        master = f"{info['master_host']}:{info['master_port']}"
        broken("replication", f"the link to the master {master} is down")
    for seconds, entry in _slow(port):
        if seconds > time.time() - RECENT:
            broken("slow_commands", f"a command took {entry}")
            break
    if int(info["connected_clients"]) > int(info["maxclients"]) * FULL:
        broken(
            "clients",
            f"{info['connected_clients']} of {info['maxclients']} clients are connected",
        )
    chosen = (
        "memory",
        "policy",
        "master",
        "role",
        "rejected",
        "evicted",
        "error",
        "client",
    )
    evidence = [
        (
            "INFO",
            "\n".join(
                f"{k}:{v}" for k, v in info.items() if any(c in k for c in chosen)
            ),
        ),
        ("Clients", _clients(port)),
        ("Slow commands", "\n".join(entry for _, entry in _slow(port)) or "none"),
    ]
    if most and used > most * FULL:
        keys = _redis(port, "--bigkeys", "-i", "0")[-1200:]
        evidence.append(("Largest keys", keys))
    pieces = [{"title": title, "text": text} for title, text in evidence]
    print(json.dumps({"violations": violations, "evidence": pieces}))


def _redis(port: str, *command: str) -> str:
    return subprocess.run(
        ["redis-cli", "-p", port, *command],
        capture_output=True,
        text=True,
        check=True,
        timeout=5,
    ).stdout


def _info(port: str) -> dict[str, str]:
    lines = (
        line.partition(":") for line in _redis(port, "INFO", "everything").splitlines()
    )
    return {name: value for name, colon, value in lines if colon}


def _clients(port: str) -> str:
    kept = ("id=", "addr=", "name=", "age=", "idle=", "cmd=", "user=")
    lines = _redis(port, "CLIENT", "LIST").splitlines()[:40]
    return "\n".join(
        " ".join(word for word in line.split() if word.startswith(kept))
        for line in lines
    )


def _slow(port: str) -> list[tuple[int, str]]:
    """Return the time (seconds since 1970) and a description of the slowest commands of the log."""
    script = """
local found = {}
for _, e in ipairs(redis.call('SLOWLOG', 'GET', 20)) do
  found[#found + 1] = {e[2], e[3], table.concat(e[4], ' '), e[5] or '', e[6] or ''}
end
return cjson.encode(found)"""
    try:
        entries = json.loads(_redis(port, "EVAL", script, "0") or "[]")
    except (json.JSONDecodeError, subprocess.CalledProcessError):
        return []
    return [
        (at, f"{micros / 1e6:.2f} s: {command[:120]} (client {address} {name})")
        for at, micros, command, address, name in entries or []
        if micros > SLOW_MICROSECONDS and not command.startswith("EVAL")
    ]


if __name__ == "__main__":
    main(sys.argv[1])
