"""The kinds of subject there are, from the entry points, and the subjects that settings name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from ..errors import SettingsError
from ..loading import explain
from .base import Subject, SubjectKind

GROUP = "midwatch.subjects"


def kinds() -> dict[str, EntryPoint]:
    """Entry points by kind; loading one imports its module."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_kind(point: EntryPoint, path: str = "") -> SubjectKind:
    """The kind behind an entry point. Raises SettingsError when its module cannot be imported."""
    try:
        kind: SubjectKind = point.load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"the kind {point.name} cannot be loaded: {error}",
            path=path,
            hint=f"reinstall the package that brings {point.value}",
        ) from error
    return kind


def build_subjects(written: Sequence[Mapping[str, Any]]) -> list[Subject]:
    """The subjects of the settings. Raises SettingsError naming the first thing that is wrong."""
    known = kinds()
    subjects: list[Subject] = []
    names: dict[str, int] = {}
    for index, one in enumerate(written):
        path = f"subjects[{index}]"
        subject = _build(one, path, known)
        if subject.name in names:
            raise SettingsError(
                f"{subject.name} is the name of subjects[{names[subject.name]}] as well",
                path=f"{path}.name",
                hint="give each subject a name of its own",
            )
        names[subject.name] = index
        subjects.append(subject)
    return subjects


def _build(
    one: Mapping[str, Any], path: str, known: Mapping[str, EntryPoint]
) -> Subject:
    kind = one.get("kind")
    if not isinstance(kind, str) or kind not in known:
        raise SettingsError(
            f"{kind!r} is no kind of subject" if kind else "a subject needs a kind",
            path=f"{path}.kind",
            hint=f"known kinds: {', '.join(sorted(known))}",
        )
    built_by = load_kind(known[kind], f"{path}.kind")
    try:
        settings = built_by.settings_model.model_validate(dict(one))
    except ValidationError as error:
        raise explain(error, built_by.settings_model, path) from None
    try:
        return built_by(settings)
    except SettingsError as error:
        raise SettingsError(
            error.message, path=path if not error.path else "", hint=error.hint
        ) from error
