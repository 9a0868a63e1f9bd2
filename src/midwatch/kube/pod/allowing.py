"""What a session in a pod may do without being asked about."""

from __future__ import annotations

from dataclasses import replace

from midwatch.session.options import SessionOptions
from midwatch.settings import SessionSettings

_OWN_WISH = {"allowed_tools", "permission_mode"}


def allowed_in_a_pod(
    options: SessionOptions, settings: SessionSettings
) -> SessionOptions:
    """`options` with Bash allowed, unless the settings say themselves what is.

    The pod is the sandbox, and in most sessions nobody is there to be asked: each command would be refused.
    """
    if _OWN_WISH & settings.model_fields_set:
        return options
    return replace(options, allowed_tools=("Bash",))
