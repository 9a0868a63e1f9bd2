"""Workspaces that outlive pods: a volume behind HTTP, synchronised by content hash.

`tree` is the manifest of a folder and its version, `wire` how chunks travel, `paths` what is refused, `tokens` who
may. `server` keeps folders: chunks by their hash, and one manifest that is replaced at once. `sync` scans a local
folder, merges it with its copy and changes either, so that both stay equal.
"""
