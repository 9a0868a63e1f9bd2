"""The checks of tables: numbers of AUTO_INCREMENT, and tables that cannot be opened. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from midwatch.model import Signal
from midwatch.subjects.findings import NotObservable, PartlyUnsupported
from midwatch.subjects.mysql.context import MysqlContext
from midwatch.subjects.mysql.snapshot import Snapshot
from midwatch.subjects.rows import Row, text

_MOST_SIGNALS = 100
_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
_CODED = re.compile(r"@([0-9a-f]{4})")


def check_auto_increment(context: MysqlContext) -> list[Signal]:
    """Return the tables that are the nearest to their end; between two looks, those of the last one."""
    if "columns" not in context.seen.read:
        return _kept(context, "auto_increment")
    limit = context.limit("auto_increment")
    columns = {
        (str(row["db"]).lower(), str(row["name"]).lower()): row
        for row in context.seen.rows("columns")
    }
    found: dict[str, dict[str, Any]] = {}
    for row in context.seen.rows("numbers"):
        key = tuple(part.lower() for part in names_of(str(row["name"])))
        column = columns.get((key[0], key[1]))
        highest = column and highest_of(str(column["type"]))
        if column is None or not highest:
            continue
        share = (int(row["next"]) - 1) / highest
        if (
            share > limit / 2
            and share >= found.get(".".join(key), {"share": 0})["share"]
        ):
            found[".".join(key)] = _number_facts(
                column, int(row["next"]), highest, share
            )
    worst = sorted(found.values(), key=lambda one: -float(one["share"]))[:_MOST_SIGNALS]
    context.state["auto_increment"] = worst
    return _all_seen(context, _kept(context, "auto_increment"))


def _number_facts(
    column: Row, next_: int, highest: int, share: float
) -> dict[str, Any]:
    return {
        "database": text(column["db"], 64),
        "table": text(column["name"], 64),
        "column": text(column["column"], 64),
        "type": text(column["type"], 40),
        "next": str(next_),
        "highest": str(highest),
        "share": share,
    }


def names_of(coded: str) -> tuple[str, str]:
    """Return database and table of a name of InnoDB (`shop/my@002dorders#P#p0`), without its partition."""
    database, _, table = coded.partition("/")
    table = re.split(r"#[pP]#", table)[0]
    return _decoded(database), _decoded(table)


def _decoded(name: str) -> str:
    return _CODED.sub(lambda match: chr(int(match[1], 16)), name)


def highest_of(type_: str) -> int | None:
    """Return the highest number of a column type such as `int(10) unsigned`; None for a type that has none."""
    found = re.match(r"(tiny|small|medium|big)?int", type_.lower())
    if found is None:
        return None
    bits = _BITS[f"{found[1] or ''}int"]
    exponent = bits if "unsigned" in type_.lower() else bits - 1
    return (1 << exponent) - 1


def check_crashed(context: MysqlContext) -> list[Signal]:
    """Return the tables that the server cannot open; between two looks, those of the last one."""
    if "crashed" not in context.seen.read:
        return _kept(context, "crashed_tables")
    context.state["crashed_tables"] = [
        {
            "database": text(row["db"], 64),
            "table": text(row["name"], 64),
            "problem": text(row["problem"], 200),
        }
        for row in context.seen.rows("crashed")
        if _damaged(str(row["problem"]))
    ]
    return _all_seen(context, _kept(context, "crashed_tables"))


def _all_seen(context: MysqlContext, signals: list[Signal]) -> list[Signal]:
    """Return the signals. Raises PartlyUnsupported where some tables are hidden from the account."""
    if context.seen.rows("visible")[0]["visible"]:
        return signals
    raise PartlyUnsupported(
        "the account does not see all tables",
        hint="GRANT REFERENCES ON *.* TO the account of the subject",
        signals=signals,
    )


def _damaged(problem: str) -> bool:
    """Return whether the error is damage, not a missing permission or a lock that was not waited for."""
    return bool(
        re.search(
            r"crashed|corrupt|incorrect (?:key )?(?:file|information)|doesn't exist in engine|repair",
            problem,
            re.IGNORECASE,
        )
    )


def tables_are_known(seen: Snapshot) -> bool:
    """Return whether a look at the tables saw all of them; otherwise the next observation looks again."""
    looked = ("columns", "numbers", "crashed", "visible")
    return all(isinstance(seen.read.get(name), list) for name in looked) and bool(
        seen.rows("visible")[0]["visible"]
    )


def _kept(context: MysqlContext, invariant: str) -> list[Signal]:
    """Return the signals of what the last look found. Raises NotObservable where there was none."""
    found = context.state.get(invariant)
    if not isinstance(found, list):
        raise NotObservable("the tables have not been looked through yet")
    make = _number_signal if invariant == "auto_increment" else _crashed_signal
    return [
        make(one)
        for one in found
        if isinstance(one, dict)
        and not context.ignores(
            invariant, {"database": one.get("database"), "table": one.get("table")}
        )
    ]


def _number_signal(one: Mapping[str, Any]) -> Signal:
    name = f"{one['database']}.{one['table']}"
    return Signal(
        "auto_increment",
        name,
        f"the next number of {name}.{one['column']} ({one['type']}) is {one['next']}; the highest is {one['highest']}",
        float(one["share"]),
        facts={key: value for key, value in one.items() if key != "share"},
    )


def _crashed_signal(one: Mapping[str, Any]) -> Signal:
    name = f"{one['database']}.{one['table']}"
    return Signal(
        "crashed_tables",
        name,
        f"{name} cannot be opened: {one['problem']}",
        holds=False,
        facts=dict(one),
    )
