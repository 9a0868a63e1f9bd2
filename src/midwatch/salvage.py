"""What an answer still says that was cut off in the middle."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from midwatch.answer import DiagnosisOutput

_FALLBACK: Final[dict[str, Any]] = {
    "verdict": "insufficient_data",
    "confidence": "low",
    "confidence_reason": "the answer was cut off",
    "severity": "warning",
}

_FIELDS: Final[dict[str, TypeAdapter[Any]]] = {
    name: TypeAdapter(field.rebuild_annotation())
    for name, field in DiagnosisOutput.model_fields.items()
}


def salvage(text: str) -> DiagnosisOutput | None:
    """The parts of a cut answer that are whole, the rest empty; None without a summary."""
    try:
        parsed = from_json(text, allow_partial=True)
    except ValueError:
        return None
    if not isinstance(parsed, dict) or not parsed.get("summary"):
        return None
    whole = {
        name: _whole(name, parsed.get(name)) for name in DiagnosisOutput.model_fields
    }
    try:
        return DiagnosisOutput.model_validate(whole)
    except ValidationError:
        return None


def _whole(name: str, value: Any) -> Any:
    """The value if it fits its field, the items of a list that fit, or what stands for nothing."""
    if _fits(name, value):
        return value
    if isinstance(value, list):
        return [item for item in value if _fits(name, [item])]
    empty: Any = [] if _fits(name, []) else ""
    return _FALLBACK.get(name, empty)


def _fits(name: str, value: Any) -> bool:
    try:
        _FIELDS[name].validate_python(value)
    except ValidationError:
        return False
    return True
