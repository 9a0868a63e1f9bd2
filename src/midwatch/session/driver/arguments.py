"""Our options as the Agent SDK's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from claude_agent_sdk import AgentDefinition, ClaudeAgentOptions
from claude_agent_sdk.types import CanUseTool, SessionStore

from midwatch.session.driver.conversation import Conversation
from midwatch.session.options import SessionOptions
from midwatch.session.transcripts import Mirror


def sdk_options(
    options: SessionOptions,
    conversation: Conversation,
    *,
    script: Path,
    cwd: Path,
    directories: Sequence[Path],
    sandbox: bool,
    config: Path,
    mcp_file: Path,
    max_usd: float | None,
    ask: CanUseTool,
    store: Mirror | None,
    on_stderr: Callable[[str], None],
) -> ClaudeAgentOptions:
    """What the SDK is told. The environment is not among it: the launcher has that."""
    trusted = options.trust_repository
    return ClaudeAgentOptions(
        cli_path=script,
        cwd=cwd,
        add_dirs=list(directories),
        # The SDK computes from this where transcripts are; the program gets it from the plan.
        env={"CLAUDE_CONFIG_DIR": str(config)},
        system_prompt=_system_prompt(options),
        model=options.model,
        fallback_model=options.fallback_model,
        effort=options.effort,
        permission_mode=options.permission_mode,
        disallowed_tools=list(options.denied_tools),
        mcp_servers=mcp_file if options.mcp_servers else {},
        strict_mcp_config=not trusted,
        setting_sources=["project", "local"] if trusted else [],
        settings=json.dumps(_settings(options, sandbox)),
        agents=_agents(options),
        max_turns=options.limits.max_turns,
        max_budget_usd=max_usd,
        max_buffer_size=options.limits.line_bytes,
        can_use_tool=None if options.permission_mode == "bypassPermissions" else ask,
        stderr=on_stderr,
        verbatim_prompts=options.verbatim,
        forward_subagent_text=True,
        resume=conversation.id if conversation.resumed else conversation.fork_of,
        fork_session=conversation.fork_of is not None,
        session_id=None if conversation.resumed else conversation.id,
        session_store=cast(SessionStore | None, store),
        session_store_flush="eager",
    )


def _system_prompt(options: SessionOptions) -> Any:
    preset: dict[str, Any] = {"type": "preset", "preset": "claude_code"}
    if options.system_prompt_addition:
        preset["append"] = options.system_prompt_addition
    return preset


def _settings(options: SessionOptions, sandbox: bool) -> dict[str, Any]:
    """The SDK's own sandbox option would drop `failIfUnavailable`, and its `allowed_tools` warns
    wherever somebody may be asked as well; as settings both count."""
    settings: dict[str, Any] = {}
    if options.allowed_tools:
        settings["permissions"] = {"allow": list(options.allowed_tools)}
    if sandbox:
        settings["sandbox"] = {
            "enabled": True,
            "failIfUnavailable": True,
            "allowUnsandboxedCommands": False,
        }
    return settings


def _agents(options: SessionOptions) -> dict[str, AgentDefinition] | None:
    if not options.subagents:
        return None
    return {
        name: AgentDefinition(
            description=spec.description,
            prompt=spec.prompt,
            tools=list(spec.tools) if spec.tools is not None else None,
            model=spec.model,
        )
        for name, spec in options.subagents.items()
    }
