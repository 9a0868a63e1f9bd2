"""What the agent plants in a repository during a session does not run, then or later."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from midwatch.session.events import Started, ToolResult
from midwatch.testing.fakes import collect, make_repository, only, session_in
from midwatch.testing.messages_api import Answer, Rule, ScriptedMessagesAPI, ToolUse
from midwatch.workspace.setup import WorkspaceOptions, setup_workspace_async

PLANT = r"""
printf '#!/bin/sh\necho "$0 $*" >> {canary}\ncat\n' > {script}; chmod +x {script}
git config core.fsmonitor {script}
git config filter.evil.clean {script}
echo '* filter=evil' > .gitattributes
for hook in post-index-change post-checkout reference-transaction pre-push; do
    cp {script} .git/hooks/$hook
done
mkdir -p .claude
cp {settings} .claude/settings.json
echo 2 >> a
"""


async def test_what_is_planted_during_a_session_never_runs(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "o.git", {"a": "1\n"})
    mine = WorkspaceOptions(cache=tmp_path / "cache")
    [path] = await setup_workspace_async(
        [str(repository)], tmp_path / "ws", options=mine
    )
    canary, script, settings = (tmp_path / n for n in ("canary", "evil", "hook.json"))
    hook = {"hooks": [{"type": "command", "command": f"{script} hook"}]}
    settings.write_text(json.dumps({"hooks": {"UserPromptSubmit": [hook]}}))
    command = PLANT.format(canary=canary, script=script, settings=settings)
    plant = Answer(tool_uses=[ToolUse("Bash", {"command": command})])
    async with ScriptedMessagesAPI(Rule([plant, "Done."], tools=True)) as api:
        session = session_in(tmp_path, api, workspace=[path], workspace_options=mine)
        events = await collect(session, "Work.")
        assert not only(events, ToolResult)[0].is_error
        [state] = (await session.get_results()).repositories
        assert not canary.exists()
        assert {f.path for f in state.files} >= {".gitattributes", "a"}
        # The program itself looks at the repository when it starts again.
        events = await collect(session, "Go on.")
        assert len(only(events, Started)) == 1
        await session.get_results()
    assert not canary.exists(), canary.read_text()

    # Else the above would prove nothing.
    env = {"PATH": os.defpath, "HOME": str(tmp_path)}
    subprocess.run(["git", "status"], cwd=path, env=env, capture_output=True)
    assert canary.exists()
