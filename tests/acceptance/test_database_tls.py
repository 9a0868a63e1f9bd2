"""TLS of the kinds mysql and redis, on real servers with certificates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import ValidationError

from midwatch.errors import MidwatchError, SettingsError
from midwatch.subjects.mysql import MysqlSettings, MysqlSubject
from midwatch.subjects.redis import RedisSubject
from midwatch.subjects.redis.settings import RedisSettings

from ..mariadb_server import PrivateMariadb, needs_mariadb
from ..redis_server import Redis, free_port, needs_redis, running
from ..waiting import PATIENCE

pytestmark = pytest.mark.integration
PASSWORD = "hunter-2-secret"
Subject = MysqlSubject | RedisSubject


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with authorities and what one of them signed: NAME.pem with its key, CA.pem."""
    folder = tmp_path_factory.mktemp("tls")
    ours, stranger = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ours.pem")
    stranger.cert_pem.write_to_path(folder / "stranger.pem")
    for name in ("localhost", "client"):
        ours.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(
            folder / f"{name}.pem"
        )
    return folder


async def said(subject: Subject) -> str:
    """Return what `midwatch check` says of the server: that it answers, or one line with what to do."""
    try:
        seen = await subject.observe({})
    except MidwatchError as error:
        line = error.one_line()
    else:
        (line,) = (s.message for s in seen.signals if s.invariant == "reachable")
    assert "\n" not in line and PASSWORD not in line
    return line


ANSWERS = "the server answers"
NOT_THE_NAME = "not valid for '127.0.0.1' (use a name that the server's certificate has"
NOT_TRUSTED = "(set ca_file to the authority that signed the server's certificate)"
NO_TLS = "does the server speak TLS on this port?"
NO_CLIENT = "client_certificate"


# ------------------------------------------------------------------ MariaDB


@pytest.fixture(scope="module")
def mariadb(files: Path) -> Iterator[PrivateMariadb]:
    own = files / "localhost.pem"
    options = [f"--ssl-{name}={own}" for name in ("cert", "key")]
    with PrivateMariadb(*options, f"--ssl-ca={files / 'ours.pem'}") as server:
        for user, needs in (("any", ""), ("tls", "SSL"), ("mutual", "X509")):
            needs = needs and f"REQUIRE {needs}"
            server.run(
                f"CREATE USER {user}@localhost IDENTIFIED BY '{PASSWORD}' {needs}"
            )
        yield server


MYSQL: dict[str, tuple[dict[str, Any], str]] = {
    "required": ({"tls": "required"}, ANSWERS),
    "required, other name": ({"tls": "required", "host": "127.0.0.1"}, ANSWERS),
    "verified": ({"tls": "verify", "ca_file": "ours.pem"}, ANSWERS),
    "wrong name": ({"ca_file": "ours.pem", "host": "127.0.0.1"}, NOT_THE_NAME),
    "unknown CA": ({"ca_file": "stranger.pem"}, NOT_TRUSTED),
    "unknown to the system": ({"tls": "verify"}, NOT_TRUSTED),
    "account wants TLS": ({"user": "tls", "tls": "off"}, "needs tls: verify"),
    "account wants a certificate": (
        {"user": "mutual", "ca_file": "ours.pem"},
        NO_CLIENT,
    ),
    "account gets it": (
        {"user": "mutual", "ca_file": "ours.pem", "client_certificate": "client.pem"},
        ANSWERS,
    ),
    "no such file": ({"ca_file": "none.pem"}, "none.pem: No such file"),
}


def mysql(server: PrivateMariadb, files: Path, **settings: Any) -> MysqlSubject:
    given = {"host": "localhost", "port": server.port, "user": "any", **settings}
    if "socket" in given:
        del given["host"]
    for name in ("ca_file", "client_certificate"):
        if name in given:
            given[name] = files / given[name]
    return MysqlSubject(MysqlSettings(name="db", password=PASSWORD, **given))


@needs_mariadb
@pytest.mark.parametrize("case", MYSQL)
async def test_mariadb_with_tls(
    mariadb: PrivateMariadb, files: Path, case: str
) -> None:
    settings, expected = MYSQL[case]
    assert expected in await said(mysql(mariadb, files, **settings))


@needs_mariadb
async def test_mariadb_on_a_socket_and_without_tls(
    mariadb: PrivateMariadb, files: Path
) -> None:
    over_socket = mysql(mariadb, files, socket=mariadb.socket, ca_file="stranger.pem")
    assert await said(over_socket) == ANSWERS  # no network is between
    with_tls = mariadb.options
    mariadb.stop()
    mariadb.options = ("--skip-ssl",)
    mariadb.start()
    try:
        for mode in ("required", "verify"):
            assert NO_TLS in await said(mysql(mariadb, files, tls=mode))
    finally:
        mariadb.stop()
        mariadb.options = with_tls
        mariadb.start()


# ------------------------------------------------------------------ Redis


@pytest.fixture(scope="module")
def redis(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    own = str(files / "localhost.pem")
    options = ["--tls-port", str(free_port()), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", own, "--tls-key-file", own]
    options += ["--tls-ca-cert-file", str(files / "ours.pem")]
    folder = tmp_path_factory.mktemp("redis")
    with running(folder, *options) as server:
        yield server


REDIS: dict[str, tuple[str, dict[str, Any], str]] = {
    "only encrypted": ("rediss://127.0.0.1:TLS", {"verify": False}, ANSWERS),
    "verified": ("rediss://localhost:TLS", {"ca_file": "ours.pem"}, ANSWERS),
    "wrong name": ("rediss://127.0.0.1:TLS", {"ca_file": "ours.pem"}, NOT_THE_NAME),
    "unknown CA": ("rediss://localhost:TLS", {"ca_file": "stranger.pem"}, NOT_TRUSTED),
    "unknown to the system": ("rediss://localhost:TLS", {}, NOT_TRUSTED),
    "plain server": (
        "rediss://localhost:PLAIN",
        {"verify": False, "connect_timeout": 1},
        NO_TLS,
    ),
    "plain client": ("redis://localhost:TLS", {}, "use rediss://"),
    "no such file": (
        "rediss://localhost:TLS",
        {"ca_file": "none.pem"},
        "none.pem: No such file",
    ),
}


def cache(server: Redis, files: Path, url: str, **settings: Any) -> RedisSubject:
    tls = server.client.config_get("tls-port")["tls-port"]
    url = url.replace("TLS", tls).replace("PLAIN", str(server.port))
    for name in ("ca_file", "client_certificate"):
        if name in settings:
            settings[name] = files / settings[name]
    given = {"name": "cache", "url": url, "timeout": PATIENCE, **settings}
    return RedisSubject(RedisSettings.model_validate(given))


@needs_redis
@pytest.mark.parametrize("case", REDIS)
async def test_redis_with_tls(redis: Redis, files: Path, case: str) -> None:
    url, settings, expected = REDIS[case]
    assert expected in await said(cache(redis, files, url, **settings))


@needs_redis
async def test_redis_that_asks_for_a_certificate(redis: Redis, files: Path) -> None:
    redis.client.config_set("tls-auth-clients", "yes")
    url, ours = "rediss://localhost:TLS", {"ca_file": "ours.pem"}
    try:
        assert NO_CLIENT in await said(cache(redis, files, url, **ours))
        with_it = cache(redis, files, url, **ours, client_certificate="client.pem")
        assert await said(with_it) == ANSWERS
    finally:
        redis.client.config_set("tls-auth-clients", "no")


def test_files_that_would_not_be_used_are_refused(files: Path) -> None:
    plain = {"name": "cache", "url": f"redis://u:{PASSWORD}@localhost"}
    ours = RedisSettings.model_validate({**plain, "ca_file": files / "ours.pem"})
    with pytest.raises(SettingsError, match="without TLS") as refused:
        RedisSubject(ours)
    assert PASSWORD not in refused.value.one_line()
    with pytest.raises(ValidationError, match="needs client_certificate"):
        RedisSettings.model_validate({**plain, "client_key": files / "client.pem"})
