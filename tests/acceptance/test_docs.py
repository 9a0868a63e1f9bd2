"""The settings that the documents show are real ones."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import yaml

from midwatch.config import load
from midwatch.subjects.base import build_subjects

ROOT = Path(__file__).parents[2]
ENVIRON = {
    "ORDERS_DSN": "postgresql://midwatch@db.example/orders",
    "HEALTH_TOKEN": "a-token-for-a-health-check",
}


def shown() -> list[tuple[str, str]]:
    """Every settings file in the documents: fenced YAML, and the README's here-document."""
    found = [
        (f"subjects.md {number}", text)
        for number, text in enumerate(
            re.findall(
                r"```yaml\n(.*?)```", (ROOT / "docs/subjects.md").read_text(), re.S
            )
        )
    ]
    readme = re.search(r"<<'EOF'\n(.*?)\n +EOF", (ROOT / "README.md").read_text(), re.S)
    assert readme
    return [*found, ("README", textwrap.dedent(readme[1]))]


@pytest.mark.parametrize(("name", "text"), shown(), ids=lambda part: part[:20])
async def test_settings_in_the_documents_can_be_used(
    name: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "midwatch.yaml"
    file.write_text(text)
    settings = load(ENVIRON, file)
    subjects = build_subjects(settings.subjects)
    assert len(subjects) == len(yaml.safe_load(text)["subjects"]) > 0, name
    for subject in subjects:
        await subject.close()
