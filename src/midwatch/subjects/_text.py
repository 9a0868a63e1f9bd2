"""Text from outside made fit for one line of a ticket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from midwatch.text import one_line as text_one_line

COMPONENT_LENGTH = 200


def one_line(text: str, limit: int = 300) -> str:
    """`text` on one line, without control characters, at most `limit` characters long."""
    return text_one_line(text[: limit * 4], limit)


def component_name(text: str) -> str:
    """`text` as the name of a component; two long names stay different when they are cut."""
    clean = one_line(text, len(text) + 1)
    if len(clean) <= COMPONENT_LENGTH:
        return clean
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]
    return f"{clean[: COMPONENT_LENGTH - 14]}…~{digest}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns, one row a line."""
    cells = [list(header)] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in cells
    )
