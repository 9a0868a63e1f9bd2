"""`midwatch up` tells people of its tickets, and the commands show what it told."""

from __future__ import annotations

import signal
from pathlib import Path

from midwatch.testing.fakes import open_tickets

from ..acceptance.cli import in_store, refused, said, said_json
from ..acceptance.notify_support import service
from .support import daemon, healthy_board, until, write_settings


async def test_up_tells_a_webhook_and_the_commands_show_it(tmp_path: Path) -> None:
    board = healthy_board(tmp_path)
    with service() as hook:
        notifications = {
            "targets": [
                {"name": "ops", "webhook": {"url": f"{hook.url}/very-secret-path"}},
                {"name": "nobody", "webhook": {"url": hook.url}},
            ],
            "routes": [
                {"name": "all", "to": ["ops"], "match": ["kind=command"]},
                {"name": "rest", "to": ["nobody"]},
            ],
            "group_wait": 0,
            "poll_interval": "100ms",
        }
        settings = write_settings(
            tmp_path, board.subject(), notifications=notifications
        )
        with daemon(settings, "up") as up:
            await up.said("notifier started", routes=2)
            board.show("shop")
            await until("the first call", lambda: hook.calls)
            board.show()
            await until(
                "the last call", lambda: "resolved" in str(hook.calls[-1].document)
            )
            await up.said("notification sent", events=["resolved"])
            code, _ = up.end(signal.SIGTERM)
            assert code == 0
            assert "very-secret-path" not in up.text
    first = hook.calls[0].document
    assert first["events"][0]["name"] == "opened"
    assert first["incident"]["tickets"][0]["component"] == "shop"
    calls = len(hook.calls)

    listed = said_json(tmp_path, "notify", "list", "--ticket", "1")
    assert {one["state"] for one in listed} == {"sent"}
    assert listed[-1]["event"] == "opened" and listed[-1]["target"] == "ops"
    assert "opened" in said(tmp_path, "notify", "list")
    assert "sent" in said(tmp_path, "stats")
    shown = said(tmp_path, "notify", "test", "--ticket", "1")
    assert "To ops, by the route all, as text" in shown
    assert "board: shop: it is broken" in shown
    assert len(hook.calls) == calls
    only = said_json(tmp_path, "notify", "test", "--ticket", "1", "--target", "nobody")
    assert [one["target"] for one in only] == ["nobody"]
    assert "there is no ticket 9" in refused(
        tmp_path, "notify", "test", "--ticket", "9"
    )


def test_send_sends_a_message_of_its_own(tmp_path: Path) -> None:
    with service() as hook:
        notifications = {
            "targets": [{"name": "ops", "webhook": {"url": hook.url}}],
            "routes": [{"name": "all", "to": ["ops"]}],
        }
        write_settings(tmp_path, notifications=notifications)
        in_store(tmp_path, lambda store: open_tickets(store, "db"))
        said(tmp_path, "notify", "test", "--ticket", "1", "--send")
    [call] = hook.calls
    assert call.document["id"].startswith("midwatch-test-")
    assert said_json(tmp_path, "notify", "list") == []
