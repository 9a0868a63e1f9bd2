"""What several of these tests share."""

from __future__ import annotations

import pytest

from midwatch.subjects import host


@pytest.fixture
def short_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through the disk of this machine, which may have millions of files, for a moment only."""
    monkeypatch.setattr(host, "_SHARE_OF_WALK", 0.002)
