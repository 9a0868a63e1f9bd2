"""Errors of a resource name the field, the value and what is allowed, without words of pydantic or PyYAML."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core._pydantic_core import list_all_errors

from midwatch.kube.convert import read_documents
from midwatch.kube.errors import SpecRefused
from midwatch.kube.resource import Spec, first_fault, read_resource

FOREIGN = re.compile(
    r"Input should|(String|Tuple|Data|List|Dictionary|Value) (should|error)|Field required|pydantic|instance of"
    r"|unicode string|while |expected |constructor|token|\^\[|Traceback|ctx|loc\b",
    re.IGNORECASE,
)


def refused(**spec: Any) -> str:
    whole = {"prompt": "p", "repos": [{"input": {"url": "https://h/a"}}], **spec}
    with pytest.raises(SpecRefused) as raised:
        read_resource({"metadata": {"name": "s"}, "spec": whole})
    return raised.value.message


@pytest.mark.parametrize("kind", list_all_errors(), ids=lambda kind: kind["type"])
def test_no_type_of_error_brings_the_words_of_pydantic(kind: Any) -> None:
    context = kind.get("example_context")
    if kind["type"] in ("value_error", "assertion_error"):
        context = {"error": ValueError("not so")}
    line = {"type": kind["type"], "loc": ("repos", 0, "name"), "input": "x"}
    line |= {"ctx": context} if context else {}
    path, message = first_fault(ValidationError.from_exception_data("Spec", [line]))  # type: ignore[list-item]
    assert path == ".repos[0].name"
    assert message and not FOREIGN.search(message)
    assert kind["example_message_python"] not in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"timeout": "1h"}, "spec.timeout: '1h' is not a whole number"),
        ({"timeout": 0}, "spec.timeout: is 0: use at least 1"),
        ({"timeout": 10**7}, "spec.timeout: is 10000000: use at most 604800"),
        ({"stop": "yes"}, "spec.stop: 'yes' is not true or false"),
        ({"stop": 1}, "spec.stop: 1 is not true or false"),
        ({"prompt": True}, "spec.prompt: not a string"),
        ({"prompt": "\ud800"}, "spec.prompt: contains characters that UTF-8"),
        ({"repos": []}, "spec.repos: is empty"),
        ({"repos": "x"}, "spec.repos: 'x' is not a list"),
        ({"repos": [7]}, "spec.repos[0]: 7 is not an object"),
        ({"repos": [{}]}, "spec.repos[0].input: is missing"),
        ({"displayName": "x" * 201}, "has 201 characters: use at most 200"),
        ({"environment": {"secrets": ["a"] * 33}}, "has 33 entries: use at most 32"),
        ({"environment": {"secrets": ["A"]}}, "'A' is not a valid object name: use"),
        (
            {"environment": {"variables": {"a b": "c"}}},
            "spec.environment.variables: 'a b' is not a valid variable name: use",
        ),
        ({"llmSettings": {"effort": "big"}}, "'big' is not allowed: use 'low', "),
        ({"llmSettings": {"model": "-x"}}, "'-x' is not a valid model name: start"),
        ({"llmSettings": {"maxBudgetUsd": 0}}, "is 0: use more than 0"),
        ({"llmSettings": {"maxBudgetUsd": "5"}}, "'5' is not a number"),
        ({"resources": {"limits": {"cpu": "x"}}}, "'x' is not an amount such as"),
        ({"resources": []}, "spec.resources: not an object"),
    ],
)
def test_a_message_has_the_field_the_value_and_what_is_allowed(
    spec: dict[str, Any], message: str
) -> None:
    found = refused(**spec)
    assert message in found
    assert not FOREIGN.search(found)


def test_values_that_may_contain_a_credential_are_not_repeated() -> None:
    url = "https://user:hunter2@h/a"
    assert "hunter2" not in refused(repos=[{"input": {"url": url}}])
    variables = {"A": "hunter2" * 1000, "B": ["hunter2"]}
    for name in variables:
        found = refused(environment={"variables": {name: variables[name]}})
        assert f"spec.environment.variables.{name}: " in found
        assert "hunter2" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: ]", "line 1, column 4"),
        ("a: 1\nb: c: d", "line 2, column 5"),
        ("a: !!python/object/apply:os.getcwd []", "line 1, column 4"),
        ("a: 1\nb: \x01", "line 2: there is a control character"),
        ("a: !!bool x", "the value does not fit its tag"),
        ("a: !!timestamp x", "the value does not fit its tag"),
        ("a: !!int ''", "the value does not fit its tag"),
        ("a: !!float x", "the value does not fit its tag"),
        ("a: " + "9" * 5000, "too long a number"),
        ("a: !!timestamp 2026-01-02", "2026-01-02 is not a JSON value"),
    ],
)
def test_a_text_that_is_no_yaml_is_refused_by_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecRefused) as raised:
        read_documents(text.encode())
    assert message in raised.value.message
    assert not FOREIGN.search(raised.value.message)


def test_every_field_of_a_spec_that_is_wrong_is_named_by_its_path() -> None:
    for field in Spec.model_fields.values():
        assert field.alias
        found = refused(**{field.alias: [7]})
        assert found.startswith(f"spec.{field.alias}")
        assert not FOREIGN.search(found)
