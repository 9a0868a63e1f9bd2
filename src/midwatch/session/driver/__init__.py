"""The claude program, driven through the Agent SDK; nothing outside of this folder imports the SDK."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from midwatch.session.errors import ProgramMissing

if find_spec("claude_agent_sdk") is None:  # it comes with an extra
    raise ProgramMissing("the Claude Agent SDK is not installed")

# What the SDK logs, we report as events and errors; without a handler it would go to stderr.
logging.getLogger("claude_agent_sdk").addHandler(logging.NullHandler())
