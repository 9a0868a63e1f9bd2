#!/bin/sh
# croniter 7.0.0 starts a program when it is imported, if `file` is installed.
#
# Expected: `import croniter` defines functions and classes, and starts nothing.
# Seen:     it asks platform.architecture() whether Python has 32 bits, and that runs `file -b PYTHON`: the import waits for a
#           process, which an event loop feels, and a process that may start none (seccomp, an audit hook) sees it try.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check croniter==7.0.0
mkdir "$folder/bin"
printf '#!/bin/sh\necho "file $*" >> "%s/started"\necho "ELF 64-bit LSB executable"\n' "$folder" >"$folder/bin/file"
chmod +x "$folder/bin/file"
PATH="$folder/bin:$PATH" "$folder/venv/bin/python" -c 'import croniter'
if ! grep '^file -b' "$folder/started"; then
    echo "it has changed: the import starts nothing"
    exit 1
fi
