"""Names that version 0.1.0 had elsewhere; each works for one more release, with a warning."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = (
    False  # as in typing, whose import takes as long as that of all else here
)
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

MODULES = {
    "midwatch.answer": "midwatch.diagnosis_schema",
    "midwatch.events": "midwatch.session.events",
    "midwatch.grounding": "midwatch.agent.grounding",
    "midwatch.intake": "midwatch.redaction",
    "midwatch.kube.names": "midwatch.kube.rules",
    "midwatch.kube.verdict": "midwatch.kube.observed",
    "midwatch.prompt": "midwatch.agent.diagnosis",
    "midwatch.session.blocking": "midwatch.session.agentic_session",
    "midwatch.session.ledger": "midwatch.session.log",
    "midwatch.session.outbox": "midwatch.session.log",
    "midwatch.session.session": "midwatch.session.agentic_session",
    "midwatch.status": "midwatch.session.status",
    "midwatch.subjects._command_output": "midwatch.subjects.command",
    "midwatch.subjects.configure": "midwatch.subjects.base",
    "midwatch.subjects.postgres.logs": "midwatch.subjects.postgres.log_lines",
    "midwatch.testing.store_conformance.stand": "midwatch.testing.store_conformance.fixture",
}
NAMES = {
    "midwatch.kube.observed": {"judge": "attempt_health"},
    "midwatch.lifecycle": {"Stop": "StopEvent", "signals_set": "stop_on_signals"},
    "midwatch.redaction": {"Intake": "Sanitizer"},
    "midwatch.testing.store_conformance": {"Stand": "StoreFixture"},
    "midwatch.testing.store_conformance.fixture": {"Stand": "StoreFixture"},
}


def renamed(module: str, name: str) -> object:
    """Return what an old name of `module` means, with a warning: its `__getattr__` (PEP 562).

    Raises:
        AttributeError: The module never had such a name.
    """
    new = NAMES[module].get(name)
    if new is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    _warn(f"{module}.{name}", f"{module}.{new}")
    return getattr(sys.modules[module], new)


def install() -> None:
    """Let the old names of modules be imported. Python asks the finder after all others."""
    if not any(isinstance(one, _MovedFinder) for one in sys.meta_path):
        sys.meta_path.append(_MovedFinder())


class _MovedFinder:
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        new = MODULES.get(fullname)
        if new is None:
            return None
        # Without importlib.abc.Loader as its base, which is slow to import.
        return ModuleSpec(fullname, _MovedLoader(fullname, new))  # type: ignore[arg-type]


class _MovedLoader:
    """Load the module of the new name, which is the same object under both names."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        _warn(self._old, self._new)
        module = import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has set that of the old name


def _warn(old: str, new: str) -> None:
    import warnings

    warnings.warn(
        f"{old} is now {new}; the old name ends with the next release",
        DeprecationWarning,
        stacklevel=3,
    )
