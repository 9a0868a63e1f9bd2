"""The playbooks there are, from the entry points."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from midwatch.errors import SettingsError
from midwatch.playbooks.base import Playbook

GROUP = "midwatch.playbooks"


def playbooks() -> list[Playbook]:
    """All playbooks. Each entry point names a sequence of them.

    Raises SettingsError for one that cannot be imported.
    """
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return [playbook for point in points for playbook in _load(point)]


def _load(point: EntryPoint) -> Sequence[Playbook]:
    try:
        found: Sequence[Playbook] = point.load()
    except (ImportError, AttributeError) as error:
        raise SettingsError(
            f"the playbooks {point.name} cannot be loaded: {error}",
            hint=f"reinstall the package that brings {point.value}",
        ) from error
    return found
