"""Workspaces that outlive pods: a volume behind HTTP, synchronised by content hash.

`tree` has the manifest of a folder, the paths that are refused and the HTTP protocol; `tokens` has the permissions.
`server` stores folders: chunks by hash, and one manifest that is replaced atomically. `sync` scans a local folder,
merges it with the stored copy and changes either, so that both become equal.
"""
