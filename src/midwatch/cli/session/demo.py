"""`midwatch session demo`: Claude Code fixes a bug in the second of two repositories."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
import yaml

from midwatch.cli.app import Edge
from midwatch.cli.session.commands import run_request
from midwatch.errors import MidwatchError

if TYPE_CHECKING:
    from midwatch.testing.messages_api import Answer


SHOP = {
    "test_cart.py": """\
import sys
import unittest

sys.path.insert(0, "../prices")
from prices import total


class Cart(unittest.TestCase):
    def test_three_for_two(self):
        self.assertEqual(total(price=4, count=3), 8)


if __name__ == "__main__":
    unittest.main()
""",
    ".gitignore": "__pycache__/\n",
    "README.md": "The cart of the shop. Prices come from the repository beside this one.\n",
}
PRICES = {
    ".gitignore": "__pycache__/\n",
    "prices.py": '''\
def total(price, count):
    """Every third piece is free."""
    return price * (count - count // 4)
''',
}
PROMPT = (
    "`python3 -B test_cart.py` fails. The bug is in the repository `prices`, which is checked out"
    " beside this one. Fix it there, and run the test again."
)
TEST = (
    "python3 -B test_cart.py"  # -B: no bytecode that hides a change of the same second
)
FIX = "sed -i 's|count // 4|count // 3|' ../prices/prices.py"
ANSWER = (
    "Every third piece is free, but `total` counted every fourth. The test passes now."
)


def run_test() -> Answer:
    """Claude runs the test."""
    return _bash(TEST)


def fix_bug() -> Answer:
    """Claude fixes the bug."""
    return _bash(FIX)


def _bash(command: str) -> Answer:
    from midwatch.testing.messages_api import Answer, ToolUse

    return Answer(tool_uses=[ToolUse("Bash", {"command": command})])


app = typer.Typer()

_KEY = "sk-ant-scripted-demo"


class DemoFailed(MidwatchError):
    """The session did not fix the bug."""

    hint = "read the events above"


@app.command()
def demo(context: typer.Context) -> None:
    """See a session on two small repositories, with Claude or, without a key, with a scripted one."""
    edge: Edge = context.obj
    with tempfile.TemporaryDirectory(prefix="midwatch-session-") as folder:
        if edge.environ.get("ANTHROPIC_API_KEY"):
            _run_demo(edge, Path(folder))
            return
        typer.echo("no ANTHROPIC_API_KEY: the answers are scripted, all else is real")
        with _scripted_api() as base_url:
            asked = {"ANTHROPIC_API_KEY": _KEY, "ANTHROPIC_BASE_URL": base_url}
            _run_demo(replace(edge, environ={**edge.environ, **asked}), Path(folder))


@contextlib.contextmanager
def _scripted_api() -> Iterator[str]:
    """Yield the URL of a scripted Messages API; the commands in its answers really run."""
    from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI

    steps = [run_test(), fix_bug(), run_test(), Answer(ANSWER)]
    with ScriptedMessagesAPI(Rule(steps, tools=True)) as api:
        yield api.base_url


def _run_demo(edge: Edge, folder: Path) -> None:
    from midwatch.cli.session.commands import diffs_of, print_diffs
    from midwatch.cli.session.service import SessionContext
    from midwatch.session.log import SessionFolder
    from midwatch.session.options import OptionOverrides
    from midwatch.session.records import SessionRequest, new_session_id
    from midwatch.testing.fakes import make_repository
    from midwatch.workspace.plan import RepoSpec

    shop = make_repository(folder / "remotes" / "shop", SHOP)
    prices = make_repository(folder / "remotes" / "prices", PRICES)
    own = replace(
        edge, environ=_without_midwatch_variables(edge), config=_settings(folder)
    )
    request = SessionRequest(
        id=new_session_id(),
        prompt=PROMPT,
        repositories=(RepoSpec(str(shop)), RepoSpec(str(prices))),
        overrides=OptionOverrides(
            allow=("Bash",), max_turns=20, max_usd=1.0, wall=600.0
        ),
    )

    async def make(sessions: SessionContext) -> SessionRequest:
        return request

    outbox = SessionFolder(folder / "state" / "sessions" / request.id).outbox
    try:
        run_request(own, make, as_json=False)
    except MidwatchError:
        _print_last_error(outbox)
        raise
    typer.echo()
    found = diffs_of(own, request.id, None)
    print_diffs(own, found)
    if not any(name == "prices" and one.text for name, one in found):
        _print_last_error(outbox)
        raise DemoFailed()


def _print_last_error(outbox: Path) -> None:
    """Print the session's own last error: the folder with its events is removed."""
    from midwatch.session.log import read_events
    from midwatch.session.permissions import last_error

    if found := last_error(list(read_events(outbox))):
        typer.echo(f"the session's last error: {found}", err=True)


def _settings(folder: Path) -> Path:
    """Write settings with all folders in `folder`. Return their path."""
    settings = {
        "database": f"sqlite:///{folder / 'midwatch.db'}",
        "sessions": {
            "folder": str(folder / "state"),
            "cache_folder": str(folder / "cache"),
        },
    }
    file = folder / "midwatch.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def _without_midwatch_variables(edge: Edge) -> dict[str, str]:
    """Return the environment without the user's Midwatch settings."""
    return {
        name: value
        for name, value in edge.environ.items()
        if not name.upper().startswith("MIDWATCH_")
    }
