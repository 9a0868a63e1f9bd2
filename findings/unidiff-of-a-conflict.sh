#!/bin/sh
# unidiff 1.0.1 reads the diff of a file with a conflict as a file in which nothing changed.
#
# Expected: the combined diff, which `git diff` prints while a merge has conflicts (git-diff, combined diff format), is read, or refused
#           with UnidiffParseError.
# Seen:     one modified file with no hunk, no line added and none removed, without an error. Who asks it whether there is
#           anything to commit is told no.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check unidiff==1.0.1
export HOME="$folder" GIT_CONFIG_NOSYSTEM=1
git init --quiet -b main "$folder/work"
cd "$folder/work"
git config user.name "A Person"
git config user.email person@example.com
commit() {
    echo "$1" > limit.txt
    git add limit.txt
    git commit --quiet -m "$1"
}
commit "at most 10"
git switch --quiet -c other
commit "at most 20"
git switch --quiet main
commit "at most 30"
git merge --quiet other > /dev/null 2>&1 || true
git diff | tee "$folder/diff"
"$folder/venv/bin/python" - "$folder/diff" <<'PYTHON'
import sys

from unidiff import PatchSet

[file] = PatchSet.from_filename(sys.argv[1])
found = (file.path, file.is_modified_file, len(file), file.added, file.removed)
print(found)
assert found == ("limit.txt", True, 0, 0, 0), "it has changed"
PYTHON
