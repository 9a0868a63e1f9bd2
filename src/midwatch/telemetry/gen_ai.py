"""Attributes of spans about Claude, as OpenTelemetry's semantic conventions for generative AI name them (pure).

`opentelemetry.semconv` lists the names; its GenAI part is at https://github.com/open-telemetry/semantic-conventions-genai.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from midwatch.model import Usage
from midwatch.telemetry.spans import Attributes

_PROVIDERS = {
    "anthropic": "anthropic",
    "bedrock": "aws.bedrock",
    "vertex": "gcp.vertex_ai",
}


def provider_name(provider: str) -> str:
    """Return the provider of the settings as `gen_ai.provider.name`."""
    return _PROVIDERS.get(provider, provider)


def agent(name: str, provider: str = "anthropic", model: str = "") -> Attributes:
    """Return the attributes of the work of an agent, span `invoke_agent NAME`."""
    return {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": provider_name(provider),
        "gen_ai.agent.name": name,
        "gen_ai.request.model": model or None,
    }


def chat_request(provider: str, model: str, max_tokens: int) -> Attributes:
    """Return the attributes of a request for a message, span `chat MODEL` of kind client."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider_name(provider),
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": max_tokens,
        "gen_ai.output.type": "json",
    }


def usage(used: Usage) -> Attributes:
    """Return the tokens of a call. Input tokens include those that were read from the cache or written to it."""
    if used == Usage():
        return {}
    cached = used.cache_read_tokens + used.cache_write_tokens
    return {
        "gen_ai.usage.input_tokens": used.input_tokens + cached,
        "gen_ai.usage.output_tokens": used.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": used.cache_read_tokens,
        "gen_ai.usage.cache_creation.input_tokens": used.cache_write_tokens,
    }


def tool(name: str, call_id: str) -> Attributes:
    """Return the attributes of a tool's call, span `execute_tool NAME`."""
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.id": call_id,
        "gen_ai.tool.type": "function",
    }


def tool_content(arguments: Any, result: str | None) -> Attributes:
    """Return the arguments and the result of a tool's call."""
    return {
        "gen_ai.tool.call.arguments": json.dumps(arguments, ensure_ascii=False),
        "gen_ai.tool.call.result": result,
    }


def prompt_content(system: str, messages: Sequence[Any]) -> Attributes:
    """Return the text of a request: the instructions, and messages in the form of the Messages API."""
    parts = [
        {"role": one["role"], "parts": list(_parts(one["content"]))} for one in messages
    ]
    return {
        "gen_ai.system_instructions": _dumped([{"type": "text", "content": system}]),
        "gen_ai.input.messages": _dumped(parts),
    }


def answer_content(text: str, reason: str) -> Attributes:
    """Return the text of an answer."""
    part = {"type": "text", "content": text}
    message = {"role": "assistant", "parts": [part], "finish_reason": reason}
    return {"gen_ai.output.messages": _dumped([message])}


def _parts(content: Any) -> Sequence[Any]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    return [
        (
            {"type": "text", "content": block["text"]}
            if block.get("type") == "text"
            # Other blocks, such as results of tools, as the API has them.
            else dict(block)
        )
        for block in content
    ]


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
