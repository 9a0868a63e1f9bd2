"""The OpenAPI document: the committed copy, and a server that answers as it says, whatever is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import schemathesis.checks
from hypothesis import HealthCheck, Phase, settings
from schemathesis.config import SchemathesisConfig
from tools.openapi import openapi_document

from .api_seed import SETTINGS, seed
from .cli import said
from .server_process import Running, server_process

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
# Every request that the document allows, and many that it does not, in a fixed order.
SCHEMA = schemathesis.openapi.from_dict(
    json.loads(DOCUMENT.read_text()), config=SchemathesisConfig(seed=1)
)
CHECKS: Any = schemathesis.checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    ]
)


def test_the_committed_document_is_current() -> None:
    assert DOCUMENT.read_text() == openapi_document(), "run `make docs`"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, str]]:
    """A server with tickets, and a token for all of it."""
    folder = tmp_path_factory.mktemp("fuzz")
    seed(folder)
    create = ("tokens", "create", "fuzz", "--role", "operator")
    scopes = ("read", "tickets:write", "silences:write", "investigations:write")
    named = [part for one in scopes for part in ("--scope", one)]
    token = said(folder, *create, *named).strip()
    with server_process(folder, SETTINGS) as running:
        yield running, token


@SCHEMA.hook("map_path_parameters")
def _near(context: Any, parameters: Any) -> Any:
    """Ask for what is there, mostly: of all numbers few are a ticket."""
    for name in ("ticket_id", "diagnosis_id", "silence_id"):
        if isinstance(number := (parameters or {}).get(name), int):
            parameters[name] = number % 5
    return parameters


@SCHEMA.include(path_regex="^/api/").exclude(path_regex="/fix$").parametrize()
@settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_server_answers_as_the_document_says(
    case: schemathesis.Case[Any], server: tuple[Running, str]
) -> None:
    running, token = server
    case.call_and_validate(
        base_url=running.url,
        headers={"authorization": f"Bearer {token}"},
        checks=CHECKS,
    )


def test_the_copy_names_each_route_once() -> None:
    found = json.loads(Path(DOCUMENT).read_text())
    ids = [
        one["operationId"] for path in found["paths"].values() for one in path.values()
    ]
    assert len(ids) == len(set(ids))
