#!/bin/sh
# cel-python 0.5.0 makes other texts of values than CEL, the language of Kubernetes' validation rules, says.
#
# Expected: string() of a bool is true or false, and of a duration or a timestamp all of it: 1.5s, 2024-01-01T00:00:00.5Z (cel-spec,
#           doc/langdef.md, string). A comparison of numbers of two types at run time, dyn(1) == 1.0, is true (the same, equality).
# Seen:     True with a capital, 1s and 2024-01-01T00:00:00Z: the fraction is lost, though it is there when the values are
#           compared. The comparison is an error, "found no matching overload".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check cel-python==0.5.0
"$folder/venv/bin/python" - <<'PYTHON'
import celpy

environment = celpy.Environment()


def evaluated(text):
    return environment.program(environment.compile(text)).evaluate({})


assert evaluated('duration("1.5s") == duration("1500ms")')
assert evaluated('timestamp("2024-01-01T00:00:00.5Z").getMilliseconds()') == 500
found = {}
for text in ("true", 'duration("1.5s")', 'timestamp("2024-01-01T00:00:00.5Z")'):
    found[text] = str(evaluated(f"string({text})"))
    print(f"string({text})", "->", found[text])
assert [*found.values()] == ["True", "1s", "2024-01-01T00:00:00Z"], "it has changed"
try:
    print(evaluated("dyn(1) == 1.0"))
except celpy.CELEvalError as error:
    print("dyn(1) == 1.0 ->", error.args[0][:30])
else:
    raise AssertionError("it has changed: it compares them")
PYTHON
