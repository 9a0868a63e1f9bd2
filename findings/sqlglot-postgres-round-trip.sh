#!/bin/sh
# sqlglot 30.30.0 changes the meaning of valid PostgreSQL when it writes it again for PostgreSQL.
#
# Expected: a statement that is read and written as dialect "postgres" keeps its meaning. PostgreSQL 16 and later read
#           1_000 as 1000, 0x1F as 31, 0o17 as 15 and 0b11 as 3 (documentation, "Numeric Constants"); to_hex(255) is 'ff'.
# Seen:     no error. 1_000 becomes 1 with the column name _000, 0o17 becomes 0 with the column name o17, 0x1F and 0b11
#           become bit strings, and to_hex becomes hex, a function that PostgreSQL does not have.
# So who admits statements by a parser, and runs what it writes, refuses such numbers or gets other values.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check sqlglot==30.30.0
"$folder/venv/bin/python" - <<'PYTHON'
import sqlglot

SEEN = {
    "SELECT 1_000": "SELECT 1 AS _000",
    "SELECT 0o17": "SELECT 0 AS o17",
    "SELECT 0x1F": "SELECT x'1F'",
    "SELECT 0b11": "SELECT b'11'",
    "SELECT TO_HEX(255)": "SELECT HEX(255)",
}
for read, written in SEEN.items():
    found = sqlglot.parse_one(read, read="postgres").sql(dialect="postgres")
    print(f"{read} -> {found}")
    assert found == written, f"it has changed: {written} was expected"
PYTHON
