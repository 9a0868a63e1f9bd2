"""The tools of Redis for an investigation. They read sizes, names and counters, never the value of a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from midwatch.model import Origin
from midwatch.subjects.redis import evidence
from midwatch.subjects.redis.connection import CommandFailed, Server
from midwatch.subjects.redis.settings import RedisSettings
from midwatch.subjects.rows import text
from midwatch.subjects.tools import Answer, Arguments, Tool
from midwatch.units import format_duration, format_size

_LENGTHS = {
    "string": "STRLEN",
    "list": "LLEN",
    "set": "SCARD",
    "zset": "ZCARD",
    "hash": "HLEN",
    "stream": "XLEN",
}


class Nothing(Arguments):
    pass


class Section(Arguments):
    section: Literal[
        "server",
        "clients",
        "memory",
        "persistence",
        "stats",
        "replication",
        "cpu",
        "commandstats",
        "latencystats",
        "errorstats",
        "keyspace",
        "cluster",
    ] = Field(description="Of INFO.")


class Pattern(Arguments):
    pattern: str = Field("*", max_length=200, description="Glob, such as session:*.")


class Key(Arguments):
    key: str = Field(description="Its whole name.", max_length=2000)


class RedisTools:
    """The tools of one server."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings = settings

    def tools(self) -> Sequence[Tool]:
        """Return the tools."""
        limit = self._settings.timeout
        return (
            Tool("info", "A section of INFO.", Section, self._info, limit),
            Tool("slow_log", "The slowest commands.", Nothing, self._slow, limit),
            Tool(
                "clients", "Who is connected, in groups.", Nothing, self._clients, limit
            ),
            Tool(
                "sample_keys",
                "What takes memory in a sample of keys, by name.",
                Pattern,
                self._sample,
                limit,
            ),
            Tool(
                "key",
                "Type, length, size and time to live of a key, without its value.",
                Key,
                self._key,
                limit,
            ),
        )

    async def _info(self, asked: Section) -> Answer:
        async with Server(self._settings) as server:
            found = await server.info(asked.section)
        lines = [
            f"{text(name, 80)}:{text(value, 300)}" for name, value in found.items()
        ]
        return Answer(f"INFO {asked.section}", "\n".join(lines))

    async def _slow(self, asked: Nothing) -> Answer:
        async with Server(self._settings) as server:
            found = await evidence.slow_commands(server)
        return Answer("SLOWLOG GET 128", found, reported=evidence.CLIENT_TEXT)

    async def _clients(self, asked: Nothing) -> Answer:
        async with Server(self._settings) as server:
            found = await evidence.clients(server)
        return Answer("CLIENT LIST", found, reported=evidence.CLIENT_TEXT)

    async def _sample(self, asked: Pattern) -> Answer:
        seconds = self._settings.timeout / 2
        async with Server(self._settings) as server:
            found = await evidence.sample(server, asked.pattern, seconds)
        command = f"SCAN 0 MATCH {asked.pattern!r}, and MEMORY USAGE of each key"
        return Answer(command, found, reported=evidence.CLIENT_TEXT)

    async def _key(self, asked: Key) -> Answer:
        async with Server(self._settings) as server:
            kind = str(await server.one("TYPE", asked.key))
            questions = [("TTL", asked.key), ("MEMORY", "USAGE", asked.key)]
            if kind in _LENGTHS:
                questions.append((_LENGTHS[kind], asked.key))
            answers = await server.ask(*questions)
        for one in answers:
            if isinstance(one, CommandFailed):
                raise one
        lives, size, *length = answers
        command = f"TYPE, TTL, MEMORY USAGE and length of {asked.key!r}"
        if kind == "none":
            return Answer(command, "there is no such key")
        lines = [f"type: {text(kind, 40)}", f"size: {format_size(int(size or 0))}"]
        lines += [f"length: {int(one):,}" for one in length]
        until = "never" if int(lives) < 0 else f"in {format_duration(float(lives))}"
        return Answer(command, "\n".join([*lines, f"expires: {until}"]), Origin.SYSTEM)
