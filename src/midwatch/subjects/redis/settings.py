"""Settings and invariants of the subject kind `redis`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from midwatch.model import Invariant, Severity, Unit
from midwatch.setting_group import Seconds
from midwatch.settings import SubjectSettings


class RedisSettings(SubjectSettings):
    """A Redis or Valkey server; of a cluster or a replication, one subject for each server."""

    kind: Literal["redis"] = "redis"
    url: SecretStr = Field(
        description="redis://user:password@host:6379, rediss://… for TLS, or unix:///path/to/socket."
    )
    password_file: Path | None = Field(
        None, description="A file that contains only the password, instead of the URL."
    )
    verify: bool = Field(
        True,
        description="Whether the certificate of rediss:// must be valid and have the name of the host; else TLS only encrypts.",
    )
    ca_file: Path | None = Field(
        None, description="Certificate authorities to trust instead of the system's."
    )
    client_certificate: Path | None = Field(
        None,
        description="A PEM file with the certificate that the server may ask for, and its key.",
    )
    client_key: Path | None = Field(
        None, description="A PEM file with the key, if `client_certificate` has none."
    )
    connect_timeout: Seconds = Field(
        3.0, gt=0, le=60, description="Timeout of one connection attempt."
    )
    command_timeout: Seconds = Field(
        3.0, ge=0.01, le=60, description="Timeout of the answer to one command."
    )
    event_window: Seconds = Field(
        300.0,
        gt=0,
        description="How long a slow command, a refused command or a refused connection counts.",
    )
    replicas: int | None = Field(
        None,
        ge=0,
        description="How many replicas a master must have; null for as many as it was seen with.",
    )

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.client_key and not self.client_certificate:
            raise ValueError("client_key needs client_certificate")
        return self


# ------------------------------------------------------------------ invariants

CRITICAL, WARNING = Severity.CRITICAL, Severity.WARNING

INVARIANTS: tuple[Invariant, ...] = (
    Invariant(
        "reachable",
        "The server answers",
        "A connection is made and INFO answered in time. A server that loads its data set, or whose only thread runs a "
        "script without end (BUSY), breaks it; one that is full does answer; a refused login is an error in the settings.",
        severity=CRITICAL,
        vital=True,
    ),
    Invariant(
        "memory",
        "Memory is left for writes",
        "Used memory as a share of `maxmemory` where nothing can be evicted (policy noeviction, or volatile-* without a key "
        "that expires), and of the machine's memory where there is no `maxmemory`. A write that was refused for lack of memory within "
        "event_window counts as 100%. A cache that evicts is meant to be full.",
        severity=CRITICAL,
        unit=Unit.RATIO,
        limit=0.9,
    ),
    Invariant(
        "evictions",
        "Few keys are evicted",
        "Keys that are evicted per second. What evicts as much no longer holds what its clients use.",
        unit=Unit.COUNT,
        limit=1000.0,
        hold_for=60.0,
    ),
    Invariant(
        "fragmentation",
        "Memory is not fragmented",
        "Memory of the process as a share of what the allocator gave out; above 64 MB only.",
        unit=Unit.RATIO,
        limit=2.0,
        hold_for=600.0,
    ),
    Invariant(
        "connected_clients",
        "Connections stay below the limit",
        "Connected clients as a share of `maxclients`; a connection that was refused within event_window counts as 100%.",
        severity=CRITICAL,
        unit=Unit.RATIO,
        limit=0.9,
    ),
    Invariant(
        "blocked_clients",
        "Few clients are blocked",
        "Clients that wait in a blocking command (BLPOP, XREAD, WAIT). Workers of a queue wait there when all is well: "
        "set the limit above their number.",
        unit=Unit.COUNT,
        limit=1000.0,
        hold_for=300.0,
    ),
    Invariant(
        "replication",
        "The replica is connected to its master",
        "How long a replica has had no link to its master. A full synchronisation counts, as the replica has old data meanwhile.",
        severity=CRITICAL,
        unit=Unit.SECONDS,
        limit=30.0,
    ),
    Invariant(
        "replicas",
        "The master has its replicas",
        "A master has fewer replicas that are online than the setting `replicas`, or than it was seen with.",
        hold_for=60.0,
    ),
    Invariant(
        "replication_lag",
        "Replicas follow their master",
        "How long a replica has not acknowledged the master's stream, seen from the master.",
        unit=Unit.SECONDS,
        limit=15.0,
        about=("replica",),
    ),
    Invariant(
        "persistence",
        "Data is written to the disk",
        "The last snapshot, the last rewrite of the append-only file and the last write to it succeeded. Redis refuses writes "
        "while one of them fails (MISCONF).",
        severity=CRITICAL,
    ),
    Invariant(
        "last_save",
        "Snapshots are recent",
        "The age of the last snapshot where snapshots are configured, there is no append-only file, and there are changes to save.",
        unit=Unit.SECONDS,
        limit=21_600.0,
    ),
    Invariant(
        "slow_commands",
        "Commands are fast",
        "The slowest command of the slow log within event_window, by command: it holds up all other clients.",
        unit=Unit.SECONDS,
        limit=0.1,
        about=("command", "client"),
    ),
    Invariant(
        "cluster",
        "The cluster serves all slots",
        "`cluster_state` is ok, each of the 16,384 slots is assigned, and no slot is on a node that failed.",
        severity=CRITICAL,
    ),
)
