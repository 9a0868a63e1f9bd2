"""The kind `redis` on real servers: each invariant broken, clear and unknown."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as driver

from midwatch.errors import ObservationFailed, SettingsError
from midwatch.model import Json, Observation
from midwatch.monitor.rules import check
from midwatch.subjects.redis import RedisSubject
from midwatch.subjects.redis.settings import RedisSettings
from midwatch.testing.subject_conformance import (
    check_kind,
    check_subject,
    tickets_for,
)
from midwatch.testing.tool_conformance import check_tools

from ..redis_server import Redis, free_port, needs_redis, running
from ..waiting import PATIENCE

pytestmark = needs_redis
ACL = (
    "on >watch-secret-1 resetkeys resetchannels -@all +ping +info +time +client|setname +client|list "
    "+slowlog|get +config|get +cluster|info +cluster|nodes +dbsize +scan +memory|usage +type +ttl "
    "+strlen +llen +scard +zcard +hlen +xlen ~*"
).split()
"""The user of docs/redis.md."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    folder = tmp_path_factory.mktemp("redis")
    with running(folder, "--enable-protected-configs", "yes") as server:
        yield server


@pytest.fixture
def server(shared: Redis) -> Redis:
    """The server of this module, as if it had just been started."""
    shared.client.flushall()
    shared.client.config_set("maxmemory", 0)
    shared.client.config_set("maxmemory-policy", "noeviction")
    shared.client.config_set("slowlog-log-slower-than", 10000)
    shared.client.slowlog_reset()
    shared.client.config_resetstat()
    return shared


def subject(url: str, **settings: Any) -> RedisSubject:
    patient = {"connect_timeout": 20, "command_timeout": 20, "timeout": PATIENCE}
    given = {"name": "cache", "url": url, **patient, **settings}
    return RedisSubject(RedisSettings.model_validate(given))


def broken(observation: Observation, one: RedisSubject) -> dict[str, str]:
    """The messages of what is broken, by invariant and component."""
    invariants = {invariant.id: invariant for invariant in one.invariants}
    found = check("cache", invariants, observation, {}, 0.0).broken
    messages = {(s.invariant, s.component): s.message for s in observation.signals}
    return {
        f"{key.invariant}/{key.component}": messages[key.invariant, key.component]
        for key in found
    }


async def look(one: RedisSubject, state: Json | None = None) -> Observation:
    return await one.observe(dict(state or {}))


async def test_it_conforms_and_a_quiet_server_is_clear(server: Redis) -> None:
    check_kind(RedisSubject)
    one = subject(server.url)
    seen = await check_subject(one)
    assert seen is not None and broken(seen, one) == {}
    assert seen.covered == {invariant.id for invariant in one.invariants}
    assert seen.unavailable == {} and seen.unsupported == {}


async def test_a_full_memory_names_what_fills_it_and_an_evicting_cache_may_be_full(
    server: Redis,
) -> None:
    one = subject(server.url)
    before = await look(one)
    server.client.config_set("maxmemory", "4mb")
    with pytest.raises(driver.ResponseError, match="used memory"):
        while True:
            server.client.rpush("session:1", "x" * 30_000)
    seen = await look(one, before.state)
    message = broken(seen, one)["memory/server"]
    assert "refused for lack of memory" in message and "noeviction" in message

    (source,) = (
        each
        for each in one.sources(tickets_for(one, seen))
        if each.title == "What takes memory"
    )
    assert "session:1" in (await source.fetch()).splitlines()[1]

    # No key expires: volatile-lru finds nothing to evict. Then one does.
    server.client.config_set("maxmemory-policy", "volatile-lru")
    server.client.delete("session:1")
    server.client.config_resetstat()
    server.client.config_set("maxmemory", 1)
    again = broken(await look(one), one)
    assert "no key expires" in again["memory/server"]
    server.client.config_set("maxmemory", 0)
    server.client.set("visit", "1", ex=3600)
    nearly_full = int(server.client.info("memory")["used_memory"] * 1.05)
    server.client.config_set("maxmemory", nearly_full)
    assert "memory/server" not in broken(await look(one), one)


async def test_a_slow_command_is_named_with_its_client(server: Redis) -> None:
    # Among few keys it takes 0 µs.
    server.client.mset({f"order:{number}": "x" for number in range(1000)})
    server.client.config_set("slowlog-log-slower-than", 0)
    one = subject(server.url, invariants={"slow_commands": {"limit": 0}})
    client = driver.Redis(port=server.port, client_name="price-job")
    client.execute_command("KEYS", "*order*")
    client.close()
    seen = await look(one)
    assert "price-job" in broken(seen, one)["slow_commands/KEYS"]
    server.client.config_set("slowlog-log-slower-than", -1)
    unknown = await look(one)
    assert "slow_commands" not in unknown.covered
    assert "slowlog-log-slower-than" in unknown.unsupported["slow_commands"]


async def test_a_full_server_is_reachable_and_the_rest_unknown(server: Redis) -> None:
    server.client.config_set("maxclients", 1)
    try:
        one = subject(server.url)
        seen = await look(one)
    finally:
        server.client.config_set("maxclients", 10_000)
    assert list(broken(seen, one)) == ["connected_clients/server"]
    assert seen.covered == {"reachable"}


async def test_a_script_without_end_and_a_stopped_process_are_unreachable(
    server: Redis,
) -> None:
    one = subject(server.url, command_timeout=0.5)
    server.client.config_set("lua-time-limit", 1)
    forever = driver.Redis(port=server.port, socket_timeout=None)
    pool = forever.connection_pool.get_connection()
    pool.send_command("EVAL", "while true do end", 0)
    other = driver.Redis(port=server.port)
    server.wait(lambda: is_busy(other))
    seen = await look(one)
    assert "BUSY" in broken(seen, one)["reachable/server"]
    assert seen.covered == {"reachable"}
    other.script_kill()
    pool.disconnect()
    server.wait(lambda: server.client.ping())
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        stopped = await look(one, seen.state)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert "timeout" in broken(stopped, one)["reachable/server"]
    assert stopped.covered == {"reachable"}
    server.wait(lambda: server.client.ping())
    server.client.slowlog_reset()  # the script, if it had much of the processor
    assert broken(await look(one, stopped.state), one) == {}


def is_busy(client: Any) -> bool:
    try:
        client.ping()
    except driver.ResponseError as error:
        return "BUSY" in str(error) or "Busy" in str(error)
    return False


async def test_the_documented_user_sees_everything_and_a_lesser_one_is_told_why(
    server: Redis, tmp_path: Path
) -> None:
    server.client.execute_command("ACL", "SETUSER", "watch", *ACL)
    file = tmp_path / "password"
    file.write_text("watch-secret-1\n")
    url = server.url.replace("//", "//watch@")
    one = subject(url, password_file=file)
    assert "watch-secret-1" in one.secrets
    seen = await check_subject(one)
    assert seen is not None and seen.unsupported == {} and seen.unavailable == {}
    server.client.execute_command(
        "ACL", "SETUSER", "watch", "-slowlog|get", "-config|get"
    )
    less = await look(one)
    assert set(less.unsupported) == {"slow_commands", "last_save"}
    assert "ACL SETUSER USER +slowlog|get" in less.unsupported["slow_commands"]
    file.write_text("wrong")
    with pytest.raises(ObservationFailed, match="the login is refused") as refused:
        await look(one)
    assert "wrong" not in refused.value.one_line()
    server.client.execute_command("ACL", "DELUSER", "watch")


async def test_a_failing_snapshot_breaks_persistence_until_one_succeeds(
    server: Redis,
) -> None:
    one = subject(server.url)
    (server.folder / "taken.rdb").mkdir(exist_ok=True)  # nothing can be renamed to it
    (server.folder / "taken.rdb" / "file").touch()
    server.client.config_set("dbfilename", "taken.rdb")
    server.client.set("a", 1)
    server.client.bgsave()
    server.wait(
        lambda: server.client.info("persistence")["rdb_last_bgsave_status"] == "err"
    )
    seen = await look(one)
    assert broken(seen, one) == {"persistence/snapshot": "the last snapshot failed"}
    server.client.config_set("dbfilename", "dump.rdb")
    server.client.bgsave()
    server.wait(
        lambda: server.client.info("persistence")["rdb_last_bgsave_status"] == "ok"
    )
    assert broken(await look(one, seen.state), one) == {}


async def test_a_replica_without_its_master_and_a_master_without_its_replica(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "master") as master:
        place = ("127.0.0.1", str(master.port))
        with running(tmp_path / "replica", "--replicaof", *place) as replica:
            replica.wait(lambda: link(replica) == "up")
            master.wait(lambda: is_online(master))
            at_once = {"replication": {"limit": "1ms"}, "replicas": {"for": "0s"}}
            of_master = subject(master.url, invariants=at_once)
            of_replica = subject(replica.url, invariants=at_once)
            seen_master = await look(of_master)
            seen_replica = await look(of_replica)
            assert (
                broken(seen_master, of_master) == broken(seen_replica, of_replica) == {}
            )
            lag = [s for s in seen_master.signals if s.invariant == "replication_lag"]
            assert [s.component for s in lag] == [f"127.0.0.1:{replica.port}"]
            replica.stop()
            master.wait(
                lambda: master.client.info("replication")["connected_slaves"] == 0
            )
            found = broken(await look(of_master, seen_master.state), of_master)
            assert found == {"replicas/server": "0 of 1 replica are online"}
            replica.start()
            replica.wait(lambda: link(replica) == "up")
            master.stop()
            replica.wait(lambda: link(replica) == "down")
            state = seen_replica.state
            end = time.monotonic() + PATIENCE
            while not (
                found := broken(seen := await look(of_replica, state), of_replica)
            ):
                assert time.monotonic() < end
                state = seen.state
            assert f"127.0.0.1:{master.port}" in found["replication/server"]


def is_online(master: Redis) -> bool:
    """Return whether a replica is online in its master's eyes, which is later than in its own."""
    replica = master.client.info("replication").get("slave0", {})
    return replica.get("state") == "online" and replica.get("lag") in (0, 1)


def link(server: Redis) -> object:
    return server.client.info("replication").get("master_link_status")


async def test_a_cluster_with_holes_is_broken(tmp_path: Path) -> None:
    # The port of the cluster is by default 10,000 higher, which may be no port.
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with running(tmp_path / "node", *options) as node:
        one = subject(node.url)
        found = broken(await look(one), one)
        assert "0 of 16,384 slots are assigned" in found["cluster/server"]
        node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        node.wait(lambda: node.client.cluster("INFO")["cluster_state"] == "ok")
        assert broken(await look(one), one) == {}


async def test_the_tools_conform_and_never_show_a_value(server: Redis) -> None:
    server.client.rpush("queue:7", "hunter2-value", "b")
    # The default user has no password, and takes any.
    one = subject(server.url.replace("//", "//default:watch-secret-2@"))
    answers = await check_tools(
        one,
        {
            "info": {"section": "replication"},
            "slow_log": {},
            "clients": {},
            "sample_keys": {"pattern": "queue:*"},
            "key": {"key": "queue:7"},
        },
    )
    assert one.secrets == ("watch-secret-2",)
    assert "role:master" in answers["info"].text
    assert "queue:N" in answers["sample_keys"].text
    assert "length: 2" in answers["key"].text
    assert not any("hunter2-value" in answer.text for answer in answers.values())
    check = {tool.name: tool for tool in one.tools()}["key"]
    gone = await check.run(check.arguments.model_validate({"key": "no such"}))
    assert gone.text == "there is no such key"


@pytest.mark.parametrize(
    "url, says",
    [
        ("http://x:1", "another scheme"),
        ("redis://", "names no server"),
        ("redis://h:99999", "range"),
        ("redis://h/0?ssl_cert_reqs=none", "more than"),
        ("unix://", "names no server"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        subject(url.replace("//", "//u:hunter2@") if "@" not in url else url)
    assert says in refused.value.one_line().lower().replace("the url ", "")
    assert "hunter2" not in refused.value.one_line()
