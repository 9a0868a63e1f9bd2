"""Add a subject to the text of a settings file, so that comments and layout stay as they were written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from midwatch.documents import DocumentError, read_yaml
from midwatch.errors import SettingsError


def entry_line(entry: Mapping[str, Any]) -> str:
    """Return an entry of `subjects` in one line of YAML, such as `{name: shop, kind: http}`."""
    text = yaml.safe_dump(
        dict(entry),
        default_flow_style=True,
        sort_keys=False,
        width=float("inf"),
        allow_unicode=True,
    )
    return text.strip()


def with_subject(text: str, entry: Mapping[str, Any]) -> str:
    """Return the text of a settings file with one more subject, which comes last.

    Args:
        text: YAML whose document is a mapping, or empty.
        entry: The new entry of `subjects`.

    Raises:
        SettingsError: The place for it is not clear in this text, such as behind an alias. `hint` has the line to add.
    """
    line = entry_line(entry)
    changed = _inserted(text, line)
    if changed is None or not _is_right(text, changed, entry):
        raise SettingsError(
            "the entry cannot be added to this layout of the file",
            path="subjects",
            hint=f"add it yourself: - {line}",
        )
    return changed


def _inserted(text: str, line: str) -> str | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    begun = text if text.endswith("\n") or not text else f"{text}\n"
    if root is None:
        return f"{begun}subjects:\n  - {line}\n"
    if not isinstance(root, yaml.MappingNode):
        return None
    for name, value in root.value:
        if name.value == "subjects":
            return _into(begun, name, value, line)
    return None if root.flow_style else f"{begun}subjects:\n  - {line}\n"


def _into(text: str, name: yaml.Node, value: yaml.Node, line: str) -> str | None:
    if isinstance(value, yaml.SequenceNode) and value.value:
        last = value.value[-1]
        if value.flow_style:
            at = last.end_mark.index
            return f"{text[:at]}, {line}{text[at:]}"
        dash = " " * value.start_mark.column
        at = text.index("\n", _last_mark(last)) + 1
        return f"{text[:at]}{dash}- {line}\n{text[at:]}"
    if isinstance(value, yaml.SequenceNode):  # []
        at, end = value.start_mark.index, value.end_mark.index
        return f"{text[:at]}[{line}]{text[end:]}"
    if isinstance(value, yaml.ScalarNode) and not value.value:  # `subjects:` alone
        at = text.index("\n", name.end_mark.index) + 1
        indent = " " * (name.start_mark.column + 2)
        return f"{text[:at]}{indent}- {line}\n{text[at:]}"
    return None


def _last_mark(node: yaml.Node) -> int:
    """Return where the text of a node ends: a block ends only where the next token begins."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _is_right(before: str, after: str, entry: Mapping[str, Any]) -> bool:
    """Return whether the new text means what the old one does and the entry."""
    try:
        old, new = read_yaml(before.encode()) or {}, read_yaml(after.encode())
    except DocumentError:
        return False
    wanted = {**old, "subjects": [*(old.get("subjects") or []), dict(entry)]}
    return bool(new == wanted)
