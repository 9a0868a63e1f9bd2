#!/bin/sh
# promql-parser 0.12.0 refuses numbers with underscores, which the language has.
#
# Expected: it parses the examples of the language's own description (Querying basics, float literals): 1_000_000, .123_456_789 and
#           0x_53_AB_F3_82. It knows what is younger, such as names of metrics in quotes, and numbers that are written as durations.
# Seen:     ValueError for all three: "bad number or duration syntax". A rule such as bytes > 1_000_000 cannot be read.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check promql-parser==0.12.0
"$folder/venv/bin/python" - <<'PYTHON'
import promql_parser

for text in ('{"free.bytes"} > 1000000', "uptime > 1h30m", "0x8f"):
    print(text, "->", promql_parser.parse(text).prettify())
refused = []
for text in ("bytes > 1_000_000", ".123_456_789", "0x_53_AB_F3_82"):
    try:
        promql_parser.parse(text)
    except ValueError as error:
        refused.append(text)
        print(text, "->", error)
assert len(refused) == 3, f"it has changed: it refuses {refused}"
PYTHON
