"""Sessions of the old platform become ours, and what is lost is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.documents import MAX_BYTES
from midwatch.kube.convert import convert, read_documents, write_yaml
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import read_resource

URL = "https://git.example/team/app.git"


def old(spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "vteam.ambient-code/v1alpha1",
        "kind": "AgenticSession",
        "metadata": {"name": "session-1", "namespace": "team"},
        "spec": {"timeout": 600, **spec},
        **more,
    }


def converted(spec: dict[str, Any], **more: Any) -> tuple[dict[str, Any], list[str]]:
    """The spec of ours, and the warnings without the session's name."""
    done = convert(old(spec, **more))
    read_resource(done.document)
    start = "session-1: "
    assert all(line.startswith(start) for line in done.warnings)
    return done.document["spec"], [line.removeprefix(start) for line in done.warnings]


def test_all_that_has_a_counterpart_is_carried_over() -> None:
    spec, warnings = converted(
        {
            "prompt": "Fix it.",
            "displayName": "A fix",
            "interactive": True,
            "repos": [
                {
                    "input": {"url": URL, "branch": "dev"},
                    "output": {"url": "https://git.example/fork/app", "branch": "fix"},
                },
                {"input": {"url": "https://git.example/team/lib"}},
            ],
            "mainRepoIndex": 1,
            "llmSettings": {"model": "claude-3-7-sonnet-latest"},
            "autoPushOnComplete": True,
            "inactivityTimeout": 120,
            "environmentVariables": {"TZ": "UTC"},
            "resourceOverrides": {"cpu": "2", "memory": "4Gi"},
        }
    )
    amounts = {"cpu": "2", "memory": "4Gi"}
    assert warnings == []
    assert spec == {
        "prompt": "Fix it.",
        "displayName": "A fix",
        "interactive": True,
        "repos": [
            {
                "input": {"url": URL, "branch": "dev"},
                "output": {"url": "https://git.example/fork/app", "branch": "fix"},
            },
            {"input": {"url": "https://git.example/team/lib", "branch": "main"}},
        ],
        "mainRepoIndex": 1,
        "llmSettings": {"model": "claude-3-7-sonnet-latest"},
        "timeout": 600,
        "idleTimeout": 120,
        "autoPushOnComplete": True,
        "environment": {"variables": {"TZ": "UTC"}},
        "resources": {"requests": amounts, "limits": amounts},
    }


def test_the_later_form() -> None:
    spec, warnings = converted({"initialPrompt": "Fix it.", "repos": [{"url": URL}]})
    assert spec["prompt"] == "Fix it." and spec["interactive"] is True
    assert spec["repos"] == [{"input": {"url": URL}}]
    assert warnings == [
        "spec.interactive is not set: it becomes true, the old default without spec.prompt"
    ]


@pytest.mark.parametrize(
    ("spec", "warning"),
    [
        ({"llmSettings": {"temperature": 0.7}}, "spec.llmSettings.temperature is left"),
        ({"llmSettings": {"maxTokens": 4000}}, "spec.llmSettings.maxTokens is left"),
        ({"userContext": {"userId": "u"}}, "spec.userContext is left out"),
        ({"botAccount": {"name": "b"}}, "spec.botAccount is left out"),
        ({"activeWorkflow": {"gitUrl": URL}}, "spec.activeWorkflow is left out"),
        ({"project": "p"}, "spec.project is left out"),
        ({"initialPrompt": "Else."}, "spec.initialPrompt is left out"),
        ({"somethingNew": 1}, "spec.somethingNew is left out"),
        ({"timeout": None}, "spec.timeout is not set: it becomes 300 seconds"),
        ({"timeout": 0}, "spec.timeout 0 becomes 604800 seconds"),
        (
            {"resourceOverrides": {"priorityClass": "high"}},
            "spec.resourceOverrides.priorityClass is left out",
        ),
        (
            {"environmentVariables": {"ANTHROPIC_API_KEY": "sk-ant-1"}},
            "spec.environmentVariables.ANTHROPIC_API_KEY is left out",
        ),
        (
            {"environmentVariables": {"A": 1}},
            "spec.environmentVariables.A is left out",
        ),
        (
            {"repos": [{"input": {"url": URL, "ref": "x"}}]},
            "spec.repos[0].input.ref is left out",
        ),
        (
            {"repos": [{"input": {"url": URL}, "output": {"url": URL}}]},
            "spec.repos[0].output names no branch",
        ),
        (
            {"repos": [{"url": URL, "autoPush": True}]},
            "spec.repos[0].autoPush is left out: autoPushOnComplete applies to all",
        ),
        (
            {"repos": [{"input": {"url": URL}, "url": "https://git.example/b"}]},
            "spec.repos[0].url is left out",
        ),
    ],
)
def test_what_is_lost_is_said(spec: dict[str, Any], warning: str) -> None:
    base = {"prompt": "Fix it.", "repos": [{"input": {"url": URL}}]}
    _, warnings = converted({**base, **spec})
    assert len(warnings) == 1
    assert warnings[0].startswith(warning)
    assert "sk-ant-1" not in warnings[0]


def test_it_begins_anew() -> None:
    """Nothing of the old resource's life comes along."""
    body = old({"prompt": "x", "repos": [{"url": URL}]}, status={"phase": "Completed"})
    body["metadata"] |= {
        "uid": "u",
        "resourceVersion": "7",
        "labels": {"a": "b"},
        "annotations": {
            "c": "d",
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        },
        "finalizers": ["vteam/x"],
    }
    done = convert(body)
    assert done.document["metadata"] == {
        "name": "session-1",
        "namespace": "team",
        "labels": {"a": "b"},
        "annotations": {"c": "d"},
    }
    assert set(done.document) == {"apiVersion", "kind", "metadata", "spec"}
    finalizers, status = done.warnings
    assert "metadata.finalizers is left out" in finalizers
    assert "status (Completed) is left out: the session runs" in status


def test_lists_are_converted_and_the_rest_stays() -> None:
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    session = old({"prompt": "x", "repos": [{"url": URL}]})
    ours = convert(session).document
    assert convert(other).document == other
    assert convert(ours).document == ours
    mixed = {"apiVersion": "v1", "kind": "List", "items": [other, session]}
    assert convert(mixed).document["items"] == [other, ours]
    typed = {
        "apiVersion": "vteam.ambient-code/v1alpha1",
        "kind": "AgenticSessionList",
        "items": [session],
    }
    assert convert(typed).document == {
        "apiVersion": "v1",
        "kind": "List",
        "items": [ours],
    }


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"prompt": "x"}, "spec.repos"),
        ({"prompt": "x", "repos": {"url": URL}}, "spec.repos"),
        ({"prompt": "x", "repos": ["a"]}, "spec.repos[0]"),
        (
            {"prompt": "x", "repos": [{"url": "ext::sh -c x"}]},
            "spec.repos[0].input.url",
        ),
        ({"prompt": ["x"], "repos": [{"url": URL}]}, "spec.prompt"),
        ({"prompt": "", "interactive": False, "repos": [{"url": URL}]}, "spec.prompt"),
        ({"prompt": "x", "repos": [{"url": URL}], "timeout": "5m"}, "spec.timeout"),
        (
            {"prompt": "x", "repos": [{"url": URL}], "llmSettings": 1},
            "spec.llmSettings",
        ),
    ],
)
def test_what_cannot_be_is_refused(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecRefused) as caught:
        convert(old(spec))
    assert caught.value.path == path


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["url", "input", "a", "branch"]), inner),
    max_leaves=8,
)
FIELDS = [
    "prompt",
    "repos",
    "llmSettings",
    "timeout",
    "environmentVariables",
    "resourceOverrides",
    "interactive",
    "mainRepoIndex",
]


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING), ANYTHING)
def test_whatever_it_is_it_is_refused_or_good(spec: dict[str, Any], meta: Any) -> None:
    body = old({"prompt": "x", "repos": [{"url": URL}], **spec})
    for document in (body, {**body, "metadata": meta}, {**body, "spec": meta}):
        try:
            done = convert(document)
        except SpecRefused:
            continue
        read_resource(done.document)


# ------------------------------------------------------------------ documents


def test_yaml_is_read_as_kubectl_does() -> None:
    text = (
        b"a: 2025-01-02\nb: 22:22\nc: 0x1F\nd: on\ne: 1.5\n---\n---\n{x: [1, null]}\n"
    )
    assert read_documents(text) == [
        {"a": "2025-01-02", "b": "22:22", "c": 31, "d": True, "e": 1.5},
        {"x": [1, None]},
    ]
    assert read_documents(b'\xef\xbb\xbf{"a": "\\/"}') == [{"a": "/"}]
    assert read_documents(b"a: &x [1]\nb: *x\n") == [{"a": [1], "b": [1]}]


BOMB = "a0: &a0 x\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "too large"),
        ("a: &x [*x]", "refers to itself"),
        ("[" * 5000, "nested deeper"),
        ('{"a":' * 5000, "nested deeper"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested deeper"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        (
            "a: 1\nb:\n  - {c: 1, d: 2, c: 3}",
            "line 3, column 18: c is given twice, first in line 3",
        ),
        ("a: " + "9" * 5000, "too long a number"),
        ("a: !!python/object/apply:os.getcwd []", "neither YAML nor JSON"),
        ("a: !!binary eHg=", "is not a JSON value"),
        ("a: .inf", "is not a JSON value"),
        ('{"a": "\\ud800"}', "is not a JSON value"),
        ('{"a": "\\ud800"}', "is not a JSON value"),
        ("1: a", "is not a string"),
        ("- a", "not a Kubernetes object"),
        ("a: [", "neither YAML nor JSON"),
        ("a: \x01", "neither YAML nor JSON"),
        ("#" * (MAX_BYTES + 1), "longer than"),
        ("\udce4", "not UTF-8"),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_document_is_refused(text: str, why: str) -> None:
    with pytest.raises(SpecRefused, match=why):
        read_documents(text.encode("utf-8", "surrogateescape"))


JSON = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8)
        | st.sampled_from(["yes", "1e3", "22:22", "2025-01-01", "a\nb\n", "=", " x\n"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(st.lists(JSON, max_size=3), st.booleans())
def test_what_is_written_is_read_again(
    documents: list[dict[str, Any]], ascii_only: bool
) -> None:
    text = write_yaml(documents, ascii_only=ascii_only)
    assert read_documents(text.encode()) == documents
    assert not ascii_only or text.isascii()
    if documents:
        assert read_documents(json.dumps(documents[0]).encode()) == documents[:1]
