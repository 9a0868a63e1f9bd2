"""First aid for Redis."""

from __future__ import annotations

from midwatch.diagnosis_schema import Citation
from midwatch.model import Context
from midwatch.playbooks.base import (
    Note,
    Playbook,
    Tickets,
    action,
    bounded,
    evidence_lines,
    finding,
    line_starting,
    measured,
    own_line,
    playbook,
    text_fact,
    write_note,
)

_STATE = "State of Redis"
_MEMORY = "What takes memory"


def _first(context: Context, title: str, start: str) -> Citation | None:
    return line_starting(context, title, start)


@playbook("redis", "memory", "evictions")
def redis_memory(tickets: Tickets, context: Context) -> Note:
    """Memory is used up: by which keys."""
    ticket = tickets[0]
    largest = _first(context, _MEMORY, "key ")
    family = _first(context, _MEMORY, "keys ")
    policy = _first(context, _STATE, "maxmemory_policy:")
    seen = own_line(context, ticket, "message: ")
    named = largest.quote.removeprefix("key ") if largest else ""
    cause = (
        f"the largest key of those looked at is {named}"
        if named
        else "memory is used up"
    )
    if policy is not None:
        cause += f"; {policy.quote.replace(':', ' is ')}"
    return write_note(
        tickets,
        summary=f"{ticket.message}."
        + (f" The largest key is {named}." if named else ""),
        cause=cause,
        cited=[largest, family, policy, seen],
        confidence="medium" if largest else "low",
        reason="sizes are measured on a sample of the keys; what writes them is not shown",
        findings=[finding("the keys of one form that take most", family)],
        readings=[measured(context, "The violations", "used")],
        actions=[
            action("See what grows", "redis-cli --memkeys", "redis-cli --bigkeys"),
            action(
                "Ask the owner of these keys whether they must stay, and for how long"
            ),
            action(
                "Give the keys of a cache a time to live, or Redis a policy that evicts",
                risk="keys that are evicted are lost",
            ),
        ],
        missing=["Which client writes these keys."],
    )


@playbook("redis", "replication", "replicas", "replication_lag")
def redis_replication(tickets: Tickets, context: Context) -> Note:
    """A replica without its master, or a master without its replicas."""
    ticket = tickets[0]
    link = _first(context, _STATE, "master_link_status:")
    master = _first(context, _STATE, "the master is ")
    host = text_fact(ticket, "master")
    seen = own_line(context, ticket, "message: ")
    cause = (
        f"the replica has no link to its master {host}"
        if ticket.key.invariant == "replication"
        else ticket.message
    )
    return write_note(
        tickets,
        summary=f"{ticket.message}.",
        cause=cause,
        cited=[link, master, seen],
        confidence="medium" if link or seen else "low",
        reason="the link is seen from one side only",
        findings=[
            finding(
                "the last contact",
                _first(context, _STATE, "master_last_io_seconds_ago:"),
            ),
            finding(
                "how often a full synchronisation was needed",
                _first(context, _STATE, "sync_full:"),
            ),
        ],
        actions=[
            action(
                "See whether the master runs and answers from the replica's machine",
                f"redis-cli -h {host.rpartition(':')[0] or 'MASTER'} -p {host.rpartition(':')[2] or '6379'} PING",
            ),
            action("Read the log of both servers around the onset"),
        ],
        risks=["The replica serves old data, and a failover would lose what it lacks."],
        missing=["The log of master and replica."],
    )


@playbook("redis", "slow_commands")
def redis_slow(tickets: Tickets, context: Context) -> Note:
    """A command that holds up all others: which, and from whom."""
    ticket = tickets[0]
    command = text_fact(ticket, "command", ticket.key.component)
    client = text_fact(ticket, "client") or text_fact(ticket, "address")
    lines = [
        Citation(evidence_id=number, quote=bounded(text))
        for number, text in evidence_lines(context, "Slow commands")
        if f", ran: {command}".casefold() in text.casefold()
    ]
    seen = own_line(context, ticket, "message: ")
    who = f" of the client {client}" if client else ""
    return write_note(
        tickets,
        summary=f"{command}{who} holds up all other clients: {ticket.message}.",
        cause=f"{command}{who} takes long, and Redis runs one command at a time",
        cited=[*lines[:2], seen],
        confidence="medium" if lines else "low",
        reason="the slow log has the command and its client",
        actions=[
            action(
                "See who runs it now",
                "redis-cli CLIENT LIST",
                "redis-cli SLOWLOG GET 10",
            ),
            action(
                "Replace KEYS by SCAN, and read large lists, sets and hashes in pieces"
                if command == "KEYS"
                else f"Ask the owner of the client what it needs {command} for"
            ),
        ],
        missing=["Why the client runs it now."],
    )


@playbook("redis", "connected_clients", "blocked_clients")
def redis_clients(tickets: Tickets, context: Context) -> Note:
    """Connections are used up: by whom."""
    ticket = tickets[0]
    lines = [
        Citation(evidence_id=number, quote=bounded(text))
        for number, text in evidence_lines(context, "Clients")
        if " from " in text
    ]
    most = lines[0].quote.partition(", idle")[0] if lines else ""
    seen = own_line(context, ticket, "message: ")
    return write_note(
        tickets,
        summary=f"{ticket.message}." + (f" The largest group: {most}." if most else ""),
        cause=f"most connections: {most}" if most else "the connections are used up",
        cited=[*lines[:2], seen],
        confidence="medium" if lines else "low",
        reason="connections are counted now, by host and name",
        actions=[
            action("See how long they are idle", "redis-cli CLIENT LIST"),
            action(
                "Bound the connection pool of that client, and close idle connections"
            ),
        ],
        missing=["Since when the number grows."],
    )


@playbook("redis", "persistence", "last_save")
def redis_persistence(tickets: Tickets, context: Context) -> Note:
    """What Redis holds is not written to the disk."""
    ticket = tickets[0]
    failed = [
        Citation(evidence_id=number, quote=text)
        for number, text in evidence_lines(context, _STATE)
        if text.startswith(("rdb_last_bgsave_status:", "aof_last_"))
        and text.endswith(":err")
    ]
    folder = _first(context, "Settings of Redis", "dir: ")
    seen = own_line(context, ticket, "message: ")
    return write_note(
        tickets,
        summary=f"{ticket.message}: what changed since the last good one would be lost with the process.",
        cause=f"{ticket.message}: a full disk, missing permissions or too little memory for the fork",
        cited=[*failed, seen],
        confidence="low",
        reason="Redis says that it failed; why is in its log",
        findings=[finding("where the files go", folder)],
        actions=[
            action(
                "See why in the log of Redis, and the space of its folder",
                "df -h",
                "redis-cli CONFIG GET dir",
            ),
            action(
                "Try again when the reason is gone",
                "redis-cli BGSAVE",
                risk="the fork needs memory while it writes",
            ),
        ],
        risks=["Redis refuses writes (MISCONF) while a snapshot fails, by default."],
        missing=["The log of Redis."],
    )


@playbook("redis", "reachable", "cluster", "fragmentation")
def redis_state(tickets: Tickets, context: Context) -> Note:
    """A server that does not answer, or a cluster with holes: what is seen."""
    ticket = tickets[0]
    return write_note(
        tickets,
        summary=f"{ticket.message}.",
        cause=ticket.message,
        cited=[own_line(context, ticket, "message: ")],
        confidence="low",
        reason="only the failure itself is seen",
        actions=[
            action(
                "See whether the process runs, and its log",
                "systemctl status redis-server",
                "journalctl -u redis-server --since -1h",
            ),
            action("See the nodes of a cluster", "redis-cli CLUSTER NODES"),
            action(
                "If a script holds it up, end the script",
                "redis-cli SCRIPT KILL",
                risk="only a script that has written nothing can be ended so",
            ),
        ],
        missing=["The log of Redis."],
    )


PLAYBOOKS: tuple[Playbook, ...] = (
    redis_memory,
    redis_replication,
    redis_slow,
    redis_clients,
    redis_persistence,
    redis_state,
)
