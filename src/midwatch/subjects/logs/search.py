"""Regular expressions for lines: RE2, whose time is linear in the text."""

from __future__ import annotations

from typing import Any


def expression(pattern: str, *, ignore_case: bool = False) -> Any:
    """Return a compiled expression for bytes of UTF-8, whose ^ and $ stand at lines. Raises ValueError."""
    import re2

    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not ignore_case
    options.max_mem = 8 << 20  # bytes
    try:
        return re2.compile(f"(?m){pattern}".encode(), options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        why = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else reason
        raise ValueError(f"{pattern!r:.100} is no expression of RE2: {why}") from None


def check_expression(pattern: str) -> str:
    """Return a pattern that is an expression of RE2. Raises ValueError."""
    expression(pattern)
    return pattern
