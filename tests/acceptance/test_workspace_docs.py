"""The example of docs/workspaces.md runs, with repositories of the test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from midwatch.testing.fakes import make_repository, run_git

from ..waiting import PATIENCE

PAGE = Path(__file__).parents[2] / "docs" / "workspaces.md"


def test_the_example_runs(tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name in ("app", "lib"):
        repository = make_repository(tmp_path / f"{name}.git", {"file": "1\n"})
        example = example.replace(f"https://example.org/{name}.git", str(repository))
    example = example.replace("state=", "cache=Path('cache'), state=")
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "app changed +1 -0 1 0" in done.stdout and "lib clean" in done.stdout
    assert "+What an agent would do." in done.stdout
    assert "app pushed midwatch/lock-hunt" in done.stdout
    assert "lib nothing fix/lock" in done.stdout
    pushed = run_git(tmp_path / "app.git", "show", "midwatch/lock-hunt:notes.txt")
    assert pushed == "What an agent would do."
