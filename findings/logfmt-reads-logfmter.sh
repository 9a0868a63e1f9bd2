#!/bin/sh
# logfmt 0.4 loses the message, and all that follows it, of a line that logfmter 0.0.12 writes.
#
# Expected: a message of two lines, which a formatter for logfmt writes in quotes with the escape \n, as the loggers for Go do, is read
#           back with its text, and so are the pairs behind it. The same for a text that ends with a backslash, written as \\.
# Seen:     the message is True, as if it had no value, and the pairs behind it are missing. Without an error. Escaped quotes are read.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check logfmt==0.4 logfmter==0.0.12
"$folder/venv/bin/python" - <<'PYTHON'
import logging

import logfmt
from logfmter import Logfmter

formatter = Logfmter()
read = {}
for message in ('a "quoted" word', "disk is full\nno space left", "cannot open D:\\new files\\"):
    record = logging.makeLogRecord({"levelname": "ERROR", "msg": message, "order": 7})
    line = formatter.format(record)
    [read[message]] = logfmt.parse([line])
    print(line, "->", read[message])
quoted, lines, path = read.values()
assert quoted == {"at": "ERROR", "msg": 'a "quoted" word', "order": "7"}
assert lines == path == {"at": "ERROR", "msg": True}, "it has changed: it reads one of them"
PYTHON
