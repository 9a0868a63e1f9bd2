"""Admit one SELECT for MariaDB and MySQL: parsed, every part on a list, and written again from the parse.

What runs is the text that is written here, so nothing depends on whether parser and server read a comment or a quote in
the same way. A comment is refused all the same, as `/*! … */` and `/*M! … */` run at the server, and so is a backslash.

Left out of the functions on purpose: all that wait, lock, read files, or write (`SLEEP`, `BENCHMARK`, `GET_LOCK`,
`RELEASE_LOCK`, `LOAD_FILE`, `MASTER_POS_WAIT`, `NEXTVAL`, `LAST_INSERT_ID`, `UpdateXML`), those that build long values from
short ones (`REPEAT`, `LPAD`, `SPACE`, `REPLACE`, `INSERT`, `GROUP_CONCAT`), regular expressions, and every function of a user.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp
from sqlglot.helper import camel_to_snake_case

from midwatch.subjects.select_guard import (
    Admitted,
    check_calls,
    has_plain_names,
    is_shown,
    parse_query,
)
from midwatch.subjects.tools import Refused
from midwatch.text import one_line

_MOST_CONCATENATIONS = 12
_MOST_SHOWN, _MOST_SHOWN_IN_ALL = (
    3,
    12,
)  # letters and digits of texts of the statement itself

FUNCTIONS = frozenset("""
    count sum avg min max std stddev stddev_pop stddev_samp variance var_pop var_samp bit_and bit_or
    rank dense_rank row_number ntile lag lead first_value last_value
    coalesce ifnull nullif if greatest least cast convert extract
    abs ceil ceiling floor round truncate sign mod sqrt ln log log2 log10 pow power
    lower upper lcase ucase length char_length character_length octet_length substring substr mid left right
    trim ltrim rtrim locate instr position substring_index concat concat_ws hex md5 sha1 crc32 strcmp field find_in_set
    now curdate curtime current_date current_time current_timestamp utc_timestamp utc_date sysdate
    date time timestamp year quarter month week day dayofmonth dayofweek dayofyear hour minute second microsecond
    date_format date_add date_sub timestampdiff timestampadd timediff datediff unix_timestamp from_unixtime
    to_seconds to_days time_to_sec sec_to_time str_to_date
    json_extract json_length json_type json_valid json_unquote
    database schema version connection_id current_user user session_user format inet_ntoa inet6_ntoa
    """.split())
"""The functions that a statement may call."""

# What may stand before a parenthesis and calls nothing.
_WORDS = frozenset("""
    as and or xor not in on using from join where having by select distinct union all except intersect then else
    when case between like over any some exists limit offset is div mod end interval
    rollup char varchar decimal numeric binary datetime time
    """.split())

_NODES = frozenset("""
    Select Subquery Union Intersect Except With CTE TableAlias Table Identifier Column Star From Join Where
    Group Rollup Having Order Ordered Limit Offset Distinct Alias Paren Tuple Window WindowSpec
    Literal Boolean Null And Or Xor Not Neg Add Sub Mul Div IntDiv Mod EQ NEQ GT GTE LT LTE NullSafeEQ
    Is In Between Like Escape Exists Any All Case If Cast DataType DataTypeParam Interval Var Concat
    JSONExtract JSONExtractScalar JSONPath JSONPathRoot JSONPathKey JSONPathSubscript
    """.split())
"""The kinds of nodes that are admitted besides functions."""

_TYPES = frozenset(
    "signed unsigned char varchar text decimal double float int bigint ubigint uint date datetime time json binary varbinary".split()
)

INFORMATION = frozenset("""
    tables columns statistics key_column_usage table_constraints referential_constraints partitions schemata engines events
    triggers routines views plugins processlist global_status
    innodb_trx innodb_locks innodb_lock_waits innodb_metrics innodb_sys_tables innodb_sys_tablestats
    innodb_sys_tablespaces innodb_sys_indexes innodb_tables innodb_tablestats innodb_tablespaces innodb_indexes
    innodb_buffer_pool_stats innodb_cmp innodb_mutexes innodb_temp_table_info innodb_tablespaces_encryption
    user_statistics table_statistics index_statistics client_statistics metadata_lock_info
    thread_pool_groups thread_pool_queues thread_pool_stats thread_pool_waits wsrep_status wsrep_membership
    """.split())
PERFORMANCE = frozenset("""
    processlist threads data_locks data_lock_waits metadata_locks table_handles global_status
    events_statements_summary_by_digest events_statements_current events_waits_current events_stages_current
    events_transactions_current events_waits_summary_global_by_event_name events_errors_summary_global_by_error
    table_io_waits_summary_by_table table_io_waits_summary_by_index_usage table_lock_waits_summary_by_table
    file_summary_by_instance memory_summary_global_by_event_name accounts hosts users host_cache
    replication_connection_status replication_applier_status replication_applier_status_by_worker
    replication_applier_status_by_coordinator replication_group_members replication_group_member_stats error_log
    """.split())
"""Tables of the server that may be read. What is not here may have passwords or values of variables of users."""


def admit(statement: str) -> Admitted:
    """Return the statement as it may run. Raises Refused, which says what is wrong."""
    for mark, name in (
        ("/*", "a comment"),
        ("\\", "a backslash"),
        ("#", "a comment"),
        ("--", "a comment"),
    ):
        if mark in statement:
            raise Refused(f"{name} is not admitted")
    tree = parse_query(statement, "mysql")
    for node in tree.walk():
        _check(node)
    _check_shown(tree)
    if sum(1 for _ in tree.find_all(exp.Concat)) > _MOST_CONCATENATIONS:
        raise Refused(f"at most {_MOST_CONCATENATIONS} concatenations are admitted")
    tables = frozenset(_tables(tree))
    for identifier in tree.find_all(exp.Identifier):
        identifier.set("quoted", True)
    text = tree.sql(dialect="mysql", comments=False)
    check_calls(text, "mysql", FUNCTIONS | _WORDS)
    return Admitted(text, tables)


def is_of_server(schema: str) -> bool:
    """Return whether a database is one of the server's own."""
    return schema in ("information_schema", "performance_schema")


def _check(node: exp.Expr) -> None:
    """Raise Refused for a node that is not admitted."""
    kind = type(node).__name__
    if kind not in _NODES and not isinstance(node, exp.Func):
        raise Refused(f"{kind} is not admitted in a SELECT that only reads")
    match node:
        case exp.Select() if node.args.get("into") or node.args.get("locks"):
            raise Refused("INTO, FOR UPDATE and LOCK IN SHARE MODE are not admitted")
        case exp.Select() if node.args.get("hint") or node.args.get(
            "operation_modifiers"
        ):
            raise Refused("hints are not admitted")
        case exp.With() if node.recursive:
            raise Refused("WITH RECURSIVE is not admitted: nothing bounds it")
        case exp.Table() if not isinstance(node.this, exp.Identifier) or node.catalog:
            raise Refused("FROM has tables and subqueries only")
        case exp.Table() if node.args.get("hints") or node.args.get("version"):
            raise Refused("hints and versions of a table are not admitted")
        case exp.From() | exp.Join() if not isinstance(
            node.this, (exp.Table, exp.Subquery)
        ):
            raise Refused("FROM has tables and subqueries only")
        case exp.Alias() | exp.TableAlias() if not has_plain_names(node):
            raise Refused("a name after AS has letters, digits and _ only")
        case exp.Anonymous() if not isinstance(node.this, str):
            raise Refused("a function has a plain name, without quotes")
        case exp.DataType() if (
            str(getattr(node.this, "value", node.this)).lower() not in _TYPES
        ):
            raise Refused("a cast to that type is not admitted")
        case exp.Literal() if node.is_string and not node.name.isprintable():
            raise Refused("a text has printable characters only")


def _tables(tree: exp.Query) -> Iterator[tuple[str, str]]:
    """Yield what the statement reads from the database: the names of its WITH are none of it."""
    named = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    for table in tree.find_all(exp.Table):
        schema, name = table.db, table.name
        if not schema:
            if name.lower() in named:
                continue
            raise Refused(f"{one_line(name, 80)} has no database: write shop.orders")
        folded = schema.lower()
        if folded == "information_schema" and name.lower() not in INFORMATION:
            raise Refused(f"information_schema.{one_line(name, 80)} is not admitted")
        if folded == "performance_schema" and name.lower() not in PERFORMANCE:
            raise Refused(f"performance_schema.{one_line(name, 80)} is not admitted")
        if folded in ("mysql", "sys"):
            raise Refused(
                f"the database {folded} is not admitted: it has accounts and functions"
            )
        yield (folded, name.lower()) if is_of_server(folded) else (schema, name)


# ------------------------------------------------------------------ text of the statement itself

# Where a text of a statement is not in its result: all of the arguments, or all but the first.
_READS = frozenset(
    "locate instr str_position field find_in_set strcmp extract length count".split()
)
_CUTS = frozenset(
    "substring_index nullif trim substring time_to_str date_format left right".split()
)


def _check_shown(tree: exp.Query) -> None:
    """Raise Refused if a text of the statement itself would stand in its result as if it had been found."""
    shown = [
        sum(map(str.isalnum, one.name))
        for one in tree.find_all(exp.Literal)
        if one.is_string and is_shown(one, _takes_in)
    ]
    if max(shown, default=0) > _MOST_SHOWN or sum(shown) > _MOST_SHOWN_IN_ALL:
        raise Refused("text of your own is not evidence: select columns only")


def _takes_in(parent: exp.Expr, node: exp.Expr) -> bool:
    match parent:
        case exp.Predicate() | exp.Interval():
            return True
        case exp.Case() | exp.If():
            return node.arg_key == "this"
        case exp.JSONExtract() | exp.JSONExtractScalar():
            return node.arg_key == "expression"
    called = isinstance(parent, exp.Anonymous)
    name = parent.name if called else camel_to_snake_case(type(parent).__name__)
    name = name.lower()
    return name in _READS or (name in _CUTS and node.arg_key != "this")
