"""Admit one SELECT: it is parsed, every part of it must be on a list, and it is written again from the parse.

What runs is the text that is written here, never the text that was given: so nothing depends on whether the
parser and the server read a comment, a quote or a name in the same way. Function names are compared with a list
in the text that runs. There are no functions in FROM, so that a column of one can only be a column: PostgreSQL
would read ``s.pg_sleep`` as a call where ``s`` is the value of a function.

Left out of the functions on purpose: all that write, wait, signal, read files or connect (`pg_sleep`,
`pg_terminate_backend`, `nextval`, `dblink`, `lo_import`, `pg_read_file`, advisory locks, `set_config`); sizes
(`pg_relation_size` queues behind the lock that is looked into) and definitions that lock their tables
(`pg_get_viewdef`, `pg_get_indexdef`); all that builds long values from short ones (`repeat`, `lpad`, `format`,
`replace`, `string_agg`, `generate_series`); and those that run a cast of the user's (`to_json` and its kin).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlglot import exp
from sqlglot.helper import camel_to_snake_case

from midwatch.subjects.select_guard import (
    Admitted,
    check_calls,
    folded,
    has_plain_names,
    is_shown,
    parse_query,
)
from midwatch.subjects.tools import Refused
from midwatch.text import one_line

_MOST_CONCATENATIONS = 12  # each can double a value that it repeats
_LONGEST_TYPE = 10_000  # a `char(n)` is padded to n

FUNCTIONS = frozenset("""
    count sum avg min max bool_and bool_or every percentile_cont percentile_disc mode
    stddev stddev_pop stddev_samp variance var_pop var_samp rank dense_rank row_number ntile lag lead first_value last_value
    coalesce nullif greatest least cast extract
    abs ceil ceiling floor round trunc sign mod sqrt ln log
    lower upper length char_length octet_length substring substr left right trim ltrim rtrim btrim position
    strpos split_part starts_with md5 quote_ident host
    to_char date_trunc date_part age clock_timestamp now statement_timestamp to_timestamp make_interval
    justify_interval isfinite jsonb_array_length json_array_length jsonb_typeof json_typeof
    unnest cardinality array_length array_position
    current_database current_schema current_setting version format_type
    inet_server_addr inet_server_port inet_client_addr
    pg_backend_pid pg_blocking_pids pg_safe_snapshot_blocking_pids pg_is_in_recovery
    pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp
    pg_current_wal_lsn pg_current_wal_insert_lsn pg_current_wal_flush_lsn pg_wal_lsn_diff
    pg_postmaster_start_time pg_conf_load_time pg_current_xact_id_if_assigned mxid_age
    pg_size_pretty pg_size_bytes pg_encoding_to_char pg_get_userbyid
    pg_table_is_visible obj_description col_description shobj_description
    to_regclass to_regrole to_regnamespace has_table_privilege has_schema_privilege has_database_privilege
    pg_has_role
    """.split())
"""The functions that a statement may call."""

# What may stand before a parenthesis and calls nothing.
_WORDS = frozenset("""
    as and or not in on using from join where having by select distinct union all except intersect then else
    when case between like ilike filter over group any some exists materialized limit offset is end
    lateral
    rollup cube sets
    varchar char decimal numeric timestamp timestamptz time
    """.split())

_NODES = frozenset("""
    Select Subquery Union Intersect Except With CTE TableAlias Table Identifier Column Star From Join Lateral Where
    Group Rollup Cube GroupingSets Having Order Ordered Limit Offset Fetch LimitOptions Distinct Alias Paren
    Tuple Window WindowSpec Filter WithinGroup
    Literal Boolean Null And Or Xor Not Neg Add Sub Mul Div Mod DPipe EQ NEQ GT GTE LT LTE NullSafeEQ NullSafeNEQ
    Is In Between Like ILike RegexpLike RegexpILike Escape Exists Any All Case If Cast DataType DataTypeParam
    ObjectIdentifier Interval Var Array Bracket AtTimeZone Parameter Dot Kwarg Lambda SimilarTo
    BitwiseOr BitwiseAnd BitwiseLeftShift BitwiseRightShift
    JSONExtract JSONExtractScalar JSONPath JSONPathRoot JSONPathKey JSONPathSubscript
    """.split())
"""The kinds of nodes that are admitted besides functions."""

_TYPES = frozenset("""
    text varchar char name bool boolean smallint int integer bigint real float double decimal numeric oid
    date time timestamp timestamptz interval uuid inet json jsonb pg_lsn xid xid8 "char"
    regclass regrole regnamespace regtype array
    """.split())

# What a text that is cast to cannot say anything.
_MEASURES = _TYPES - frozenset("text varchar char name json jsonb array".split())

# Tables and views of the server. What is not here may have passwords (pg_authid, pg_subscription,
# pg_user_mapping, pg_foreign_server, pg_hba_file_rules, pg_file_settings), be long (pg_largeobject), or lock
# what they describe (pg_views, pg_indexes, pg_sequences).
CATALOGS = frozenset("""
    pg_am pg_attribute pg_cast pg_class pg_collation pg_constraint pg_database pg_db_role_setting pg_depend
    pg_description pg_enum pg_event_trigger pg_extension pg_index  pg_inherits pg_locks pg_namespace
    pg_opclass pg_operator pg_partitioned_table pg_prepared_xacts pg_proc pg_publication pg_publication_rel
    pg_range pg_replication_origin_status pg_replication_slots pg_roles pg_sequence  pg_settings
    pg_shdepend pg_stat_activity pg_stat_all_indexes pg_stat_all_tables pg_stat_archiver pg_stat_bgwriter
    pg_stat_checkpointer pg_stat_database pg_stat_database_conflicts pg_stat_io pg_stat_progress_analyze
    pg_stat_progress_basebackup pg_stat_progress_cluster pg_stat_progress_copy pg_stat_progress_create_index
    pg_stat_progress_vacuum pg_stat_recovery_prefetch pg_stat_replication pg_stat_replication_slots
    pg_stat_slru pg_stat_ssl pg_stat_subscription pg_stat_subscription_stats
    pg_stat_sys_indexes pg_stat_sys_tables pg_stat_user_functions pg_stat_user_indexes pg_stat_user_tables
    pg_stat_wal pg_stat_wal_receiver pg_stat_xact_all_tables pg_stat_xact_user_tables pg_statio_all_indexes
    pg_statio_all_sequences pg_statio_all_tables pg_statio_user_indexes pg_statio_user_sequences
    pg_statio_user_tables pg_statistic_ext pg_stats pg_tables pg_tablespace pg_trigger pg_type pg_wait_events
    """.split())


_NO_FUNCTION = (
    "FROM has tables and subqueries only: LATERAL (SELECT unnest(…) AS x) AS y"
)

# Where a text of a statement is not in its result: all of the arguments, or all but the first.
_READS = frozenset("""
    current_setting to_regclass to_regrole to_regnamespace has_table_privilege has_schema_privilege
    has_database_privilege pg_has_role pg_size_bytes obj_description shobj_description array_position
    starts_with str_position date_part extract length to_timestamp str_to_time age count
    """.split())
_CUTS = frozenset("split_part nullif trim substring at_time_zone bracket".split())
_FORMAT = re.compile(
    r"%-?\w|FM|[AP]M|TZ|OF|(?i:HH(12|24)?|MI|SS|[MU]S|D|TM|Mon|Day|Month|[09]+)"
)
_MOST_SHOWN = 3  # letters and digits of one text, such as a separator
_MOST_SHOWN_IN_ALL = 12


def admit(statement: str, *, parameters: bool = False) -> Admitted:
    """Return the statement as it may run. `parameters` admits `$1`. Raises Refused, which says what is wrong."""
    tree = parse_query(statement, "postgres")
    for node in tree.walk():
        _check(node, parameters)
    _check_shown(tree)
    if sum(1 for _ in tree.find_all(exp.DPipe)) > _MOST_CONCATENATIONS:
        raise Refused(f"at most {_MOST_CONCATENATIONS} concatenations are admitted")
    tables = frozenset(_tables(tree))
    for identifier in tree.find_all(exp.Identifier):
        if not identifier.quoted:
            identifier.set("this", identifier.name.lower())
            identifier.set("quoted", True)
    text = tree.sql(dialect="postgres", comments=False)
    # `_check` refuses quoted functions.
    check_calls(text, "postgres", FUNCTIONS | _WORDS, quoted=True)
    return Admitted(text, tables)


def _check(node: exp.Expr, parameters: bool) -> None:
    """Raise Refused for a node that is not admitted."""
    kind = type(node).__name__
    if kind not in _NODES and not isinstance(node, exp.Func):
        raise Refused(f"{kind} is not admitted in a SELECT that only reads")
    match node:
        case exp.Parameter() if not (parameters and node.name.isdigit()):
            raise Refused("a parameter such as $1 has no value here")
        case exp.Dot() if not _is_system_call(node):
            raise Refused("only functions of pg_catalog may be qualified")
        case exp.With() if node.recursive:
            raise Refused("WITH RECURSIVE is not admitted: nothing bounds it")
        case exp.Table() if not isinstance(node.this, exp.Identifier) or node.catalog:
            raise Refused(_NO_FUNCTION)
        case exp.From() | exp.Join() if not isinstance(
            node.this, (exp.Table, exp.Subquery, exp.Lateral)
        ):
            raise Refused(_NO_FUNCTION)
        case exp.Lateral() if not isinstance(node.this, exp.Subquery):
            raise Refused(_NO_FUNCTION)
        case exp.Alias() | exp.TableAlias() if not has_plain_names(node):
            raise Refused("a name after AS has letters, digits and _ only")
        case exp.Anonymous() if not isinstance(node.this, str):
            raise Refused("a function has a plain name, without quotes")
        case exp.Array() if node.find(exp.Query):
            raise Refused("ARRAY(SELECT …) is not admitted: read the rows")
        case exp.DataType() | exp.ObjectIdentifier():
            _check_type(node)


def _is_system_call(node: exp.Dot) -> bool:
    schema, call = node.this, node.expression
    return (
        isinstance(schema, exp.Identifier)
        and schema.name.lower() == "pg_catalog"
        and isinstance(call, exp.Func)
    )


def _check_type(node: exp.DataType | exp.ObjectIdentifier) -> None:
    name = _type_name(node)
    if name not in _TYPES:
        raise Refused(f"a cast to {one_line(name, 60)} is not admitted")
    for size in node.find_all(exp.DataTypeParam):
        if not size.name.isdigit() or int(size.name) > _LONGEST_TYPE:
            raise Refused("the length of that type is not admitted")


def _type_name(node: exp.DataType | exp.ObjectIdentifier) -> str:
    named = node.args.get("kind") or node.this
    if isinstance(named, exp.Expr):
        return named.name.lower()
    return str(getattr(named, "value", named)).lower()


def _check_shown(tree: exp.Query) -> None:
    """Raise Refused if a text of the statement itself would stand in its result as if it had been found."""
    shown = [
        sum(map(str.isalnum, _without_format(one)))
        for one in tree.find_all(exp.Literal)
        if one.is_string and is_shown(one, _takes_in)
    ]
    if max(shown, default=0) > _MOST_SHOWN or sum(shown) > _MOST_SHOWN_IN_ALL:
        raise Refused("text of your own is not evidence: select columns only")


def _without_format(literal: exp.Literal) -> str:
    """Return what is left of a text without the patterns of a format, if it is one."""
    is_format = isinstance(literal.parent, (exp.TimeToStr, exp.ToChar))
    return (
        _FORMAT.sub("", literal.name)
        if is_format and literal.arg_key == "format"
        else literal.name
    )


def _takes_in(parent: exp.Expr, node: exp.Expr) -> bool:
    match parent:
        case exp.Predicate() | exp.Interval():
            return True
        case exp.Cast():
            return _type_name(parent.to) in _MEASURES
        case exp.Case() | exp.If():
            return node.arg_key == "this"
        case exp.Lambda():  # so `doc -> 'key'` is parsed as an argument
            return node.arg_key == "this" and isinstance(node, exp.Literal)
        case exp.JSONExtract() | exp.JSONExtractScalar() | exp.JSONBExtractScalar():
            return node.arg_key == "expression"
    called = isinstance(parent, exp.Anonymous)
    name = parent.name if called else camel_to_snake_case(type(parent).__name__)
    name = name.lower()
    return name in _READS or (name in _CUTS and node.arg_key != "this")


def _tables(tree: exp.Query) -> Iterator[tuple[str, str]]:
    """Yield what the statement reads from the database: the names of its WITH are none of it."""
    named = {folded(cte.args["alias"].this) for cte in tree.find_all(exp.CTE)}
    if any(name.startswith("pg_") for name in named):
        # Where such a name is out of scope, it is a catalog.
        raise Refused("a name of WITH may not begin with pg_")
    for table in tree.find_all(exp.Table):
        schema = table.args.get("db")
        name = folded(table.this)
        if schema is not None:
            yield folded(schema), name
        elif name not in named:
            yield "", name
