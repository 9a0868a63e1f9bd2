#!/bin/sh
# lightkube 1.0.1 refuses quantities that Kubernetes writes and takes.
#
# Expected: parse_quantity() takes every quantity of the Kubernetes API. `n` and `u` are suffixes of its grammar (metrics-server reports
#           the use of processors in `n`: 156340231n), and the exponent may be written with a capital E (1E3 is 1000).
# Seen:     ValueError, "Invalid unit suffix", for these three. With a small e, and for m and Mi, it answers.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lightkube==1.0.1
"$folder/venv/bin/python" - <<'PYTHON'
from lightkube.utils.quantity import parse_quantity

assert [int(parse_quantity(one)) for one in ("1e3", "2Mi")] == [1000, 2097152]
refused = []
for text in ("156340231n", "250u", "1E3"):
    try:
        parse_quantity(text)
    except ValueError as error:
        refused.append(text)
        print(text, "->", error)
assert refused == ["156340231n", "250u", "1E3"], "it has changed: it takes some of these"
PYTHON
