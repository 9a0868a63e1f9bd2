"""`midwatch session demo` as the README shows it, without a key."""

from __future__ import annotations

import re
from pathlib import Path

from .support import run


def test_a_bug_in_the_second_repository_is_mended(tmp_path: Path) -> None:
    config = tmp_path / "midwatch.yaml"
    config.write_text("database: sqlite:///not-used.db")
    told = run(config, "session", "demo")
    assert told.returncode == 0, told.stderr
    failed, passed = [line for line in told.stdout.splitlines() if "Ran 1 test" in line]
    assert "FAILED" in failed and passed.rstrip().endswith("OK")
    assert "prices: changed, 1 file +1 -1" in told.stdout
    assert "shop: clean" in told.stdout
    assert "+    return price * (count - count // 3)" in told.stdout
    folder = re.findall(r"/\S*midwatch-session-[^/]*", told.stdout)[0]
    assert not Path(folder).exists() and not (tmp_path / "not-used.db").exists()
