"""The process that makes one call of a library that blocks: `python -m midwatch.notify.blocking_process`.

It reads a request as JSON from its standard input and writes the result as JSON to its standard output. Slack's SDK and
Apprise wait for their services as long as these keep a connection alive; a process can be ended in time, a thread cannot.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
# https://docs.slack.dev/reference/methods/chat.update#errors and those of chat.postMessage
_GONE = frozenset(
    {
        "message_not_found",
        "cant_update_message",
        "edit_window_closed",
        "thread_not_found",
    }
)
_REFUSED = frozenset(
    {"no_text", "msg_too_long", "invalid_blocks", "as_user_not_supported"}
)


def main() -> None:
    """Make the call that standard input asks for."""
    # A plug-in may print: the result has a descriptor of its own.
    result = os.dup(1)
    os.dup2(2, 1)
    request: Json = json.load(sys.stdin)
    try:
        answer = _CALLS[request["call"]](request)
    except ModuleNotFoundError as error:
        answer = {"missing": error.name}
    with os.fdopen(result, "w", encoding="utf-8") as out:
        json.dump(answer, out)


# ------------------------------------------------------------------ Slack


def slack(request: Json) -> Json:
    """Post or edit a message, and reply in its thread. Return how Slack names the message."""
    from slack_sdk import WebClient
    from slack_sdk.errors import SlackApiError, SlackClientError

    client = WebClient(
        request["token"], base_url=request["base_url"], timeout=request["timeout"]
    )
    common: Json = {"unfurl_links": False, "unfurl_media": False, "link_names": False}
    found: Json = {"channel": request["channel"], "ts": request.get("ts")}
    try:
        if found["ts"] and request["edit"]:
            try:
                client.chat_update(
                    channel=found["channel"], ts=found["ts"], text=request["text"]
                )
            except SlackApiError as error:
                if error.response.get("error") not in _GONE:
                    raise
                found["ts"] = None
        if not found["ts"]:
            posted = client.chat_postMessage(
                channel=request["post_to"], text=request["text"], **common
            )
            return {"channel": posted["channel"], "ts": posted["ts"]}
        if request.get("reply"):
            client.chat_postMessage(
                channel=found["channel"],
                thread_ts=found["ts"],
                text=request["reply"],
                reply_broadcast=request["broadcast"],
                **common,
            )
    except SlackApiError as error:
        name = str(error.response.get("error") or error.response.status_code)
        wait = {k.lower(): v for k, v in error.response.headers.items()}
        return {
            "error": f"Slack says {name}",
            "refused": name in _REFUSED,
            "retry_after": wait.get("retry-after"),
        }
    except (SlackClientError, OSError, ValueError) as error:
        return {"error": f"Slack cannot be reached: {error}"}
    return found


# ------------------------------------------------------------------ Apprise


def describe(request: Json) -> Json:
    """Return the markup and the limits of an Apprise URL."""
    plugin = _plugin(request["url"])
    if plugin is None:
        return {"unknown": True}
    formats = plugin.notify_format
    names = [
        str(getattr(one, "value", one))
        for one in (formats if isinstance(formats, (tuple, list)) else [formats])
    ]
    return {
        "formats": names,
        "title": plugin.title_maxlen,
        "body": plugin.body_maxlen,
        "schema": request["url"].partition("://")[0].lower(),
    }


def apprise(request: Json) -> Json:
    """Send a message by Apprise."""
    plugin = _plugin(request["url"])
    if plugin is None:
        return {"error": "it is not an Apprise URL that this version knows"}
    said = io.StringIO()
    logging.getLogger("apprise").addHandler(logging.StreamHandler(said))
    import apprise as library

    notification = library.Apprise()
    notification.add(plugin)
    sent = notification.notify(
        title=request["title"],
        body=request["body"],
        body_format=request["format"],
        notify_type=request["type"],
    )
    if sent:
        return {}
    lines = [line for line in said.getvalue().splitlines() if line.strip()]
    return {
        "error": f"Apprise could not send it: {' '.join(lines[-3:]) or 'no reason'}"
    }


def _plugin(url: str) -> Any:
    import apprise as library
    from apprise import AppriseAsset, PersistentStoreMode

    asset = AppriseAsset(
        app_id="Midwatch",
        app_desc="Midwatch",
        app_url="",
        storage_mode=PersistentStoreMode.MEMORY,
        async_mode=False,
    )
    return library.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)


_CALLS: dict[str, Callable[[Json], Json]] = {
    "slack": slack,
    "describe": describe,
    "apprise": apprise,
}

if __name__ == "__main__":
    main()
