"""`midwatch kube crd` and `midwatch kube convert`, as people pipe them into kubectl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from midwatch.kube.crd import crd

from .. import processes
from .cli import environ, midwatch, on_a_terminal, refused, said

OLD = """\
apiVersion: vteam.ambient-code/v1alpha1
kind: AgenticSession
metadata: {name: session-1}
spec:
  prompt: |
    Fix the log-in.
    Tell für wen.
  repos: [{input: {url: https://git.example/app}}]
  llmSettings: {model: claude-sonnet-4, temperature: 0.7}
  timeout: 600
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {when: 2025-01-02}
"""


def piped(folder: Path, text: str, *arguments: str) -> tuple[int, str, str]:
    done = processes.run(
        ["kube", "convert", *arguments], cwd=folder, env=environ(folder), input=text
    )
    return done.returncode, done.stdout, done.stderr


def test_the_definition_is_printed(tmp_path: Path) -> None:
    assert yaml.safe_load(said(tmp_path, "kube", "crd")) == crd()
    assert json.loads(said(tmp_path, "kube", "crd", "-o", "json")) == crd()


def test_documents_go_in_and_out_of_a_pipe(tmp_path: Path) -> None:
    code, out, err = piped(tmp_path, OLD)
    assert code == 0
    session, other = yaml.safe_load_all(out)
    assert session["apiVersion"] == "midwatch.dev/v1alpha1"
    assert session["spec"]["prompt"] == "Fix the log-in.\nTell für wen.\n"
    assert "  prompt: |\n    Fix the log-in.\n    Tell für wen.\n" in out
    assert other["data"] == {"when": "2025-01-02"}
    assert err == (
        "midwatch: session-1: spec.llmSettings.temperature is left out: "
        "Claude Code has no such setting\n"
    )
    again = piped(tmp_path, out)
    assert again == (0, out, "")


def test_files_and_json(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    done = midwatch(tmp_path, "kube", "convert", "old.yaml", "old.yaml", "-o", "json")
    listed = json.loads(done.stdout)
    assert (listed["kind"], len(listed["items"])) == ("List", 4)
    code, out, _ = piped(tmp_path, json.dumps(listed), "-o", "json")
    assert (code, json.loads(out)) == (0, listed)


def test_bad_input_is_one_line_and_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(OLD.replace("https://git", "--https://git"))
    line = refused(tmp_path, "kube", "convert", "bad.yaml", code=2)
    assert line.startswith("midwatch: bad.yaml, document 1: spec.repos[0].input.url: ")
    assert midwatch(tmp_path, "kube", "convert", "bad.yaml").stdout == ""
    assert "none.yaml: cannot be read" in refused(
        tmp_path, "kube", "convert", "none.yaml", code=2
    )


@pytest.mark.parametrize(
    ("text", "said_so"),
    [
        ("a: [", "neither YAML nor JSON: line 1"),
        ("password: 'hunter2", "a quote is not closed"),
        ("a: 1\na: hunter2", "a is given twice"),
        ('{"a": 1, "a": "hunter2"}', "'a' is given twice"),
        ("a: &a [*a]", "as an alias it refers to itself"),
        ("[" * 50_000, "nested deeper than 60"),
        ("when: !!timestamp 2026-13-45", "the value does not fit its tag"),
        (f"timeout: {'9' * 5000}", "too long a number"),
        (f'{{"timeout": {"9" * 5000}}}', "too long a number"),
        (OLD.replace("git.example", "git.example:99999"), "the port of the URL is not"),
    ],
    ids=lambda text: text[:20],
)
def test_hostile_input_is_one_line(tmp_path: Path, text: str, said_so: str) -> None:
    code, out, err = piped(tmp_path, text)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("midwatch: standard input") and said_so in err
    assert "hunter2" not in err


def test_a_kubeconfig_that_is_no_yaml_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("users:\n- token: 'hunter2\n")
    env = {"MIDWATCH_OPERATOR__KUBECONFIG": "kubeconfig"}
    line = refused(tmp_path, "kube", "operator", env=env, code=2)
    assert "cannot read kubeconfig: line 3" in line and "hunter2" not in line


def test_on_a_terminal_nothing_acts(tmp_path: Path) -> None:
    hostile = "apiVersion: v1\nkind: ConfigMap\ndata: {a: 'x\u202ey'}\n"
    (tmp_path / "x.yaml").write_text(hostile)
    shown = on_a_terminal(tmp_path, "kube", "convert", "x.yaml")
    assert "\u202e" not in shown and "\\u202e" in shown.lower()
