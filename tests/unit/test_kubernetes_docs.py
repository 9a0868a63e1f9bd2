"""docs/kubernetes.md says what is so: its YAML is valid, its commands exist, its tables are current."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deploy import render
from jsonschema import Draft202012Validator
from tools.tables import (
    KUBERNETES_PAGE,
    METRICS,
    METRICS_PAGE,
    with_metrics,
    with_variables,
)
from typer.main import get_command

import midwatch
from midwatch.cli.command_table import app
from midwatch.kube.controller import SessionCounts
from midwatch.kube.crd import crd
from midwatch.kube.resource import read_resource
from midwatch.kube.rules import API_VERSION, DISRUPTION_REASONS, REASONS

from .. import snippets

Json = dict[str, Any]
PAGE = KUBERNETES_PAGE.read_text(encoding="utf-8")
SOURCE = Path(midwatch.__file__).parent
SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def blocks(language: str) -> list[str]:
    return snippets.blocks("docs/kubernetes.md", language)


def unknown(schema: Json, document: Any, path: str = "") -> Iterator[str]:
    """Fields that the API server would prune in silence."""
    known = schema.get("properties", {})
    if isinstance(document, dict) and known:
        for name, value in document.items():
            if name not in known:
                yield f"{path}.{name}"
            elif (path, name) != ("", "metadata"):
                yield from unknown(known[name], value, f"{path}.{name}")
    if isinstance(document, list):
        for item in document:
            yield from unknown(schema.get("items", {}), item, path)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_yaml_is_valid(text: str) -> None:
    document = yaml.safe_load(text)
    if document.get("apiVersion") == API_VERSION:
        assert list(unknown(SCHEMA, document)) == []
        Draft202012Validator(SCHEMA).validate(document)
        read_resource({**document, "metadata": {**document["metadata"], "uid": "1"}})
    elif "kind" in document:
        kubernetes_validate.validate(document, "1.37", strict=True)
    else:
        assert render.documents(document)


def test_the_schema_finds_a_misspelt_field() -> None:
    document = yaml.safe_load(blocks("yaml")[0])
    document["spec"]["promt"] = "x"
    assert list(unknown(SCHEMA, document)) == [".spec.promt"]


def commands() -> list[list[str]]:
    """The calls of midwatch in shell blocks and in running text: their words."""
    shell = "\n".join(blocks("sh"))
    found = re.findall(r"(?:^|\| |-- )midwatch ([a-z]+(?: [a-z]+)*)", shell, re.M)
    text = " ".join(re.sub(r"```.*?```", "", PAGE, flags=re.S).split())
    found += re.findall(r"`midwatch ([a-z]+(?: [a-z]+)*)", text)
    return [words.split() for words in found]


def test_its_commands_exist() -> None:
    assert ["kube", "convert"] in commands() and ["db", "status"] in commands()
    for words in commands():
        command: Any = get_command(app)
        for word in words:
            command = command.get_command(None, word)
            assert command is not None, f"midwatch {' '.join(words)}"


def test_the_table_of_variables_is_current() -> None:
    assert with_variables(PAGE) == PAGE, "run `make docs`"
    assert "| `REPOS_JSON` |" in PAGE


def words_of_the_code() -> set[str]:
    """All texts and names of classes, in which every reason is."""
    found: set[str] = set()
    for folder in ("kube", "session", "workspace", "content"):
        for file in (SOURCE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.ClassDef):
                    found.add(node.name)
    return found


def operator_reasons() -> set[str]:
    """The reasons that the operator gives of itself."""
    tree = ast.parse((SOURCE / "kube" / "observed.py").read_text(encoding="utf-8"))
    return {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "AttemptHealth"
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
    }


def test_its_reasons_are_those_of_the_code() -> None:
    table = PAGE[PAGE.index("| reason | phase |") : PAGE.index("## The runner's")]
    documented = set(re.findall(r"`([A-Z][A-Za-z]+)`", table))
    assert len(documented) > 40
    assert documented - words_of_the_code() == set()
    assert operator_reasons() - documented == set()


def test_an_end_s_reason_is_a_label_if_it_is_in_the_table() -> None:
    """And no other is: a status can be written by whoever may write it."""
    table = PAGE[PAGE.index("| reason | phase |") : PAGE.index("## The runner's")]
    wanted = set()
    for line in table.splitlines()[2:]:
        cells = line.split("|")
        if len(cells) > 2 and re.search("Completed|Failed|Stopped|any", cells[2]):
            wanted |= set(re.findall(r"`([A-Z]\w+)`", cells[1] + cells[3]))
    assert wanted - REASONS == {"Restarting", "Restarted"}
    assert REASONS - wanted == DISRUPTION_REASONS, "those are Kubernetes' own"
    counts = SessionCounts()
    for reason in ("Completed", *(f"invented {number}" for number in range(5))):
        counts.ended("Failed", reason)
    assert counts.ends == {("Failed", "Completed"): 1, ("Failed", "other"): 5}


def test_the_metrics_are_those_of_the_code() -> None:
    page = METRICS_PAGE.read_text(encoding="utf-8")
    assert with_metrics(page) == page, "run `make docs`"
    known = {family.name for family in METRICS} | {"midwatch_info"}
    written = set(re.findall(r"\bmidwatch_[a-z_]+", page + PAGE))
    assert written == known
    for family in METRICS:
        assert family.name.endswith("_total") is (family.kind == "counter")
        assert not {"folder", "session", "url", "path"} & set(family.labels)


def test_the_rights_are_those_of_the_chart() -> None:
    table = PAGE[
        PAGE.index("| resource | verbs | why |") : PAGE.index("Each session's")
    ]
    written = {
        (resource, verb)
        for line in table.splitlines()[2:]
        if line.strip()
        for resource in re.findall(r"`([^`]+)`", line.split("|")[1])
        for verb in line.split("|")[2].strip().split(", ")
    }
    granted = {
        (resource, verb)
        for rule in render.rules_for()[""]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert written == granted


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (KUBERNETES_PAGE.parent / target).exists(), target
