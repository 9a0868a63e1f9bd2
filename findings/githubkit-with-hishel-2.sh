#!/bin/sh
# githubkit 0.16.1 cannot be imported as pip installs it: it allows hishel 2.0.0, which lacks a name that it imports.
#
# Expected: `pip install githubkit==0.16.1` gives a package that can be imported; its requirement is hishel>=1.3.0,<=2.0.0.
# Seen:     pip takes hishel 2.0.0, and `import githubkit` ends with ImportError: cannot import name 'CachePolicy' from
#           'hishel'. With hishel<2 the import works.
# So a package that needs it has to require hishel<2 as well.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/pip install --quiet --disable-pip-version-check"
$pip githubkit==0.16.1 hishel==2.0.0
if "$folder/venv/bin/python" -c 'import githubkit' 2>"$folder/says"; then
    echo "it has changed: githubkit can be imported with hishel 2.0.0"
    exit 1
fi
grep "cannot import name 'CachePolicy' from 'hishel'" "$folder/says"
$pip 'hishel<2'
"$folder/venv/bin/python" -c 'import githubkit'
echo "with hishel<2 it can be imported"
