"""Several `midwatch monitor` on one PostgreSQL: they share the subjects, also when one of them is killed."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from midwatch.store.sql import open_store
from midwatch.store.upgrade import upgrade_database
from midwatch.testing.postgres import PrivatePostgres

from .support import daemon, healthy_board, until, write_settings

SUBJECTS = 12


async def test_a_killed_monitor_leaves_its_subjects_to_the_others(
    tmp_path: Path,
) -> None:
    board = healthy_board(tmp_path)
    board.show("pump")
    subjects = [board.subject(name=f"board-{number}") for number in range(SUBJECTS)]
    with PrivatePostgres() as server, ExitStack() as stack:
        await upgrade_database(server.dsn())
        configs = []
        for name in ("a", "b", "c", "d"):
            (folder := tmp_path / name).mkdir()
            configs.append(
                write_settings(
                    folder,
                    *subjects,
                    database=server.dsn(),
                    monitor={"interval": "1s", "lease": "60s"},
                )
            )
        store = await open_store(server.dsn())

        async def shares() -> dict[str | None, int]:
            states = await store.subject_states()
            return Counter(one.watcher for one in states)

        async def fair(count: int) -> Counter[str | None] | None:
            found = Counter(await shares())
            even = sorted(found.values()) == [SUBJECTS // count] * count
            return found if even and None not in found else None

        async def alive() -> None:
            """Wait until each subject is observed again."""
            states = await store.subject_states()
            before = {one.name: one.last_look_at for one in states}

            async def again() -> bool:
                now = {
                    one.name: one.last_look_at for one in await store.subject_states()
                }
                return all(now[name] != at for name, at in before.items())

            await until("each subject is observed", again)

        first = stack.enter_context(daemon(configs[0], "monitor"))
        for config in configs[1:3]:
            stack.enter_context(daemon(config, "monitor"))
        before = await until("three share", lambda: fair(3))
        await alive()
        killed = f":{first.process.pid}"
        first.end(signal.SIGKILL)
        await until("two share", lambda: fair(2))
        assert not any(str(name).endswith(killed) for name in await shares())
        await alive()
        stack.enter_context(daemon(configs[3], "monitor"))
        after = await until("three share again", lambda: fair(3))
        assert len(before.keys() & after.keys()) == 2
        tickets = await store.unresolved_counts()
        assert sum(tickets.values()) == SUBJECTS
        await store.close()
