"""How a kubeconfig is understood: as kubectl does it, against servers with real TLS, a real proxy and real programs."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import ssl
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from midwatch.cluster.connection import Connection, Login
from midwatch.cluster.errors import ClusterUnavailable
from midwatch.errors import MidwatchError, SettingsError
from midwatch.model import Json

from ..waiting import PATIENCE, wait_until
from .web import Issued, Reply, serving, tunnelling

V1 = "client.authentication.k8s.io/v1"
PROGRAM = f"#!{sys.executable}\nimport json, os, pathlib, sys, time\nhere = pathlib.Path(__file__).parent\n"
PRINTS = """
told = json.loads(os.environ["KUBERNETES_EXEC_INFO"])
withheld = [name for name in os.environ if name.startswith("ANTHROPIC_")]
number = len((here / "runs").read_text()) if (here / "runs").exists() else 0
(here / "runs").write_text("x" * (number + 1))
(here / "told").write_text(json.dumps([told, sys.argv[1:], withheld, os.environ["REGION"]]))
status = json.loads((here / "status").read_text().replace("NUMBER", str(number)))
print(json.dumps({"apiVersion": told["apiVersion"], "kind": "ExecCredential", "status": status}))
"""


def kubeconfig(folder: Path, cluster: Json, user: Json) -> Path:
    file = folder / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {
                "current-context": "a",
                "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return file


def program(folder: Path, body: str, **more: Any) -> Json:
    """A user who logs in by a program beside the kubeconfig."""
    file = folder / "bin" / "login"
    file.parent.mkdir(exist_ok=True)
    file.write_text(PROGRAM + body)
    file.chmod(0o755)
    asked = {"apiVersion": V1, "command": "./bin/login", "interactiveMode": "Never"}
    variable = {"name": "REGION", "value": "eu-1"}
    return {"exec": asked | {"args": ["token"], "env": [variable], **more}}


def only(*tokens: str) -> Callable[[BaseHTTPRequestHandler], Reply]:
    """Answer who has one of these tokens, with the headers of the request."""

    def reply(handler: BaseHTTPRequestHandler) -> Reply:
        told = handler.headers.get("Authorization", "").removeprefix("Bearer ")
        got = json.dumps({"headers": handler.headers.items()})
        return (200 if told in tokens else 401), {}, got.encode()

    return reply


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha1"])
async def test_a_program_is_run_again_when_its_token_is_refused_or_over(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-not-for-programs")
    api = V1.replace("v1", version)
    user = program(tmp_path, PRINTS, apiVersion=api, provideClusterInfo=True)
    status, runs = tmp_path / "bin" / "status", tmp_path / "bin" / "runs"
    status.write_text('{"token": "token-NUMBER"}')
    with serving(only("token-1", "token-2", "token-3")) as url:
        async with Connection.connect(
            kubeconfig(tmp_path, {"server": url}, user)
        ) as one:
            await one.get("version", "read the version")
            await one.text("version", "read the version", {})
            assert len(runs.read_text()) == 2  # the first one was refused
            assert one.secrets == ("token-0", "token-1")
        over = (
            '{"token": "token-NUMBER", "expirationTimestamp": "2020-01-01T00:00:00Z"}'
        )
        status.write_text(over)
        async with Connection.connect(
            kubeconfig(tmp_path, {"server": url}, user)
        ) as one:
            await one.get("version", "read the version")
            await one.get("version", "read the version")
            assert len(runs.read_text()) == 4
    told = json.loads((tmp_path / "bin" / "told").read_text())
    spec = {"interactive": False, "cluster": {"server": url}}
    exact = {"apiVersion": api, "kind": "ExecCredential", "spec": spec}
    assert told == [exact, ["token"], [], "eu-1"]


async def test_of_replaced_logins_and_tokens_the_last_ones_are_kept(
    tmp_path: Path,
) -> None:
    def logins() -> int:
        gc.collect()
        return sum(isinstance(one, Login) for one in gc.get_objects())

    last, before = 40, logins()
    (tmp_path / "bin").mkdir()
    accepted = [""]
    with serving(lambda handler: only(*accepted)(handler)) as url:
        file = kubeconfig(tmp_path, {"server": url}, {"token": "token-0"})
        async with Connection.connect(file) as one:
            for number in range(1, last + 1):
                accepted[:] = [f"token-{number}"]
                kubeconfig(tmp_path, {"server": url}, {"token": f"token-{number}"})
                with pytest.raises(MidwatchError):
                    await one.get("version", "read the version")
                await one.get("version", "read the version")
            assert logins() - before <= 3 and f"token-{last}" in one.secrets
        status = tmp_path / "bin" / "status"
        user = program(tmp_path, PRINTS)
        status.write_text('{"token": "token-NUMBER"}')
        accepted[:] = []
        async with Connection.connect(
            kubeconfig(tmp_path, {"server": url}, user)
        ) as one:
            for _ in range(last):
                with pytest.raises(MidwatchError):
                    await one.get("version", "read the version")
            runs = len((tmp_path / "bin" / "runs").read_text())
            assert runs >= last > len(one.secrets) > 1
            assert f"token-{runs - 1}" in one.secrets


@pytest.mark.parametrize("through_proxy", [False, True])
async def test_a_certificate_of_a_program_and_the_name_of_the_server(
    tmp_path: Path, through_proxy: bool
) -> None:
    root = Issued.root()
    authority, _ = root.write(tmp_path, "root")
    tls = root.issue("api.internal").context(tmp_path)
    tls.verify_mode = ssl.CERT_OPTIONAL
    tls.load_verify_locations(authority)
    chain, key = root.issue("mara").write(tmp_path, "mara")

    def who(handler: BaseHTTPRequestHandler) -> Reply:
        assert isinstance(handler.connection, ssl.SSLSocket)
        shown = handler.connection.getpeercert() or {}
        return 200, {}, json.dumps({"shown": shown.get("subject")}).encode()

    user = program(tmp_path, PRINTS)
    status = {
        "clientCertificateData": chain.read_text(),
        "clientKeyData": key.read_text(),
    }
    (tmp_path / "bin" / "status").write_text(json.dumps(status))
    with serving(who, tls) as url, tunnelling(header=b"Via: test") as (proxy, asked):
        cluster = {"server": url, "certificate-authority": authority.name}
        async with Connection.connect(kubeconfig(tmp_path, cluster, user)) as other:
            with pytest.raises(MidwatchError, match="(?i)certificate"):
                await other.get("version", "read the version")
        cluster["tls-server-name"] = "api.internal"
        if through_proxy:
            cluster["proxy-url"] = proxy
        async with Connection.connect(kubeconfig(tmp_path, cluster, user)) as one:
            answer = await one.get("version", "read the version")
            again = await one.text("version", "read the version", {})
        assert answer == json.loads(again) == {"shown": [[["commonName", "mara"]]]}
        assert asked == [url.removeprefix("https://")] * (2 if through_proxy else 0)


@pytest.mark.parametrize(
    ("body", "more", "said"),
    [
        ("sys.exit('sign in first')", {}, "./bin/login ended with 1: sign in first"),
        ("print('hello')", {}, "printed no ExecCredential"),
        (
            'print(json.dumps({"apiVersion": "v0", "status": {"token": "x"}}))',
            {},
            "printed v0, the kubeconfig says",
        ),
        (
            f'print(json.dumps({{"apiVersion": "{V1}", "status": {{}}}}))',
            {},
            "printed no credentials",
        ),
        (
            "",
            {
                "command": "no-such-login",
                "installHint": "get it from the platform team",
            },
            "there is no program no-such-login. get it from the platform team",
        ),
    ],
)
async def test_a_program_that_fails_is_told_in_one_line(
    tmp_path: Path, body: str, more: Json, said: str
) -> None:
    user = program(tmp_path, body, **more)
    file = kubeconfig(tmp_path, {"server": "http://127.0.0.1:9"}, user)
    async with Connection.connect(file) as one:
        with pytest.raises(ClusterUnavailable) as caught:
            await one.get("version", "read the version")
    line = caught.value.one_line()
    assert line.startswith("cannot read the version: ") and said in line
    assert "\n" not in line


async def test_a_program_that_hangs_is_ended_with_what_it_started(
    tmp_path: Path,
) -> None:
    body = "(here / 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    file = kubeconfig(
        tmp_path, {"server": "http://127.0.0.1:9"}, program(tmp_path, body)
    )
    pid = tmp_path / "bin" / "pid"
    async with Connection.connect(file) as one:
        asking = asyncio.create_task(one.get("version", "read the version"))
        await asyncio.to_thread(
            wait_until, lambda: pid.exists() and pid.read_text() != ""
        )
        asking.cancel()
        await asyncio.wait([asking], timeout=PATIENCE)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_who_is_acted_for_is_told_in_headers(tmp_path: Path) -> None:
    user = {
        "tokenFile": "token",
        "as": "viewer",
        "as-groups": ["a", "b"],
        "as-user-extra": {"team/of": ["shop"]},
    }
    (tmp_path / "token").write_text("own-token\n")
    with serving(only("own-token")) as url:
        async with Connection.connect(
            kubeconfig(tmp_path, {"server": url}, user)
        ) as one:
            headers = (await one.get("version", "read the version"))["headers"]
            again = json.loads(await one.text("version", "read the version", {}))
    acting = [
        ["impersonate-user", "viewer"],
        ["impersonate-group", "a"],
        ["impersonate-group", "b"],
        ["impersonate-extra-team%2fof", "shop"],
    ]
    for told in (headers, again["headers"]):
        lower = [[name.lower(), value] for name, value in told]
        assert [one for one in lower if one[0].startswith("impersonate")] == acting


@pytest.mark.parametrize(
    ("cluster", "user", "said"),
    [
        ({}, {}, "clusters.0.cluster.server: Field required"),
        (
            {
                "server": "https://a",
                "insecure-skip-tls-verify": True,
                "proxy-url": None,
            },
            {
                "as-groups": None,
                "exec": {"apiVersion": V1, "command": "x", "env": None},
            },
            "",
        ),
        (
            {
                "server": "https://a",
                "insecure-skip-tls-verify": True,
                "certificate-authority": "x",
            },
            {},
            "remove one",
        ),
        ({"server": "https://a", "certificate-authority": "gone"}, {}, "No such file"),
        ({"server": "https://a", "proxy-url": "ftp://a"}, {}, "proxy-url has none"),
        (
            {"server": "https://a"},
            {"exec": {"apiVersion": V1, "command": "x", "interactiveMode": "Always"}},
            "x asks a person",
        ),
        (
            {"server": "https://a"},
            {"exec": {"apiVersion": "v2", "command": "x"}},
            "users.0.user.exec.apiVersion: Input should be",
        ),
        (
            {"server": "https://a", "certificate-authority-data": "%"},
            {},
            "certificate-authority-data",
        ),
    ],
)
async def test_what_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, cluster: Json, user: Json, said: str
) -> None:
    file = kubeconfig(tmp_path, cluster, user)
    if not said:
        async with Connection.connect(file):
            return
    with pytest.raises(SettingsError) as caught:
        Connection.connect(file)
    assert said in caught.value.one_line() and "\n" not in caught.value.one_line()
