#!/bin/sh
# obstore 0.12.1 does not take back what its own `put` returned.
#
# Expected: `put` returns the e_tag and the version of what it wrote; both together are the `UpdateVersion` that a later
#           `put(…, mode=…)` takes, and its type says `version: str | None`. Stores without versions return None.
# Seen:     TypeError: 'None' is not an instance of 'str'. Without the key, the same update succeeds.
# So who passes the result on, as its type allows, can update nothing on a store without versions.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1
"$folder/venv/bin/python" - <<'PYTHON'
from obstore.store import MemoryStore

store = MemoryStore()
written = store.put("manifest", b"1")
print(f"put returns {dict(written)}")
assert written["version"] is None, "it has changed: the store has versions now"
try:
    store.put("manifest", b"2", mode=dict(written))
except TypeError as error:
    print(f"TypeError: {error}")
else:
    raise SystemExit("it has changed: the result is taken back")
again = store.put("manifest", b"2", mode={"e_tag": written["e_tag"]})
print(f"without the key: {dict(again)}")
PYTHON
