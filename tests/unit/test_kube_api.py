"""The calls to the API server: conflicts, faults and answers of all kinds, against the real semantics."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from midwatch.cluster.error_mapping import CLIENT_ERRORS, Conflict, map_client_error
from midwatch.cluster.errors import ClusterRefused, ClusterUnavailable, ResourceGone
from midwatch.errors import MidwatchError, PermanentError, SettingsError, TemporaryError
from midwatch.kube.client import Cluster
from midwatch.kube.crd import crd
from midwatch.kube.errors import NameTaken
from midwatch.kube.rules import API_VERSION, FINALIZER, KIND, SESSION_LABEL, UID_LABEL
from midwatch.lifecycle import SystemClock
from midwatch.model import Json
from tests.cluster import ApiServer, asking


class Hurried(SystemClock):
    """Sleeps take no time, and are remembered."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


SESSION: Json = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "s", "namespace": "default"},
    "spec": {
        "prompt": "mend it",
        "repos": [{"input": {"url": "https://git.example/a.git"}}],
    },
}


@pytest.fixture(scope="module")
def shared() -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.objects.create(crd(), "")
        yield server


@pytest.fixture
def server(shared: ApiServer) -> Iterator[ApiServer]:
    shared.objects.create(SESSION)
    shared.requests.clear()
    yield shared
    shared.faults.clear()
    shared.objects.merge(
        "agenticsessions", "default", "s", {"metadata": {"finalizers": None}}
    )
    shared.objects.delete("agenticsessions", "default", "s")


@pytest.fixture
def kubeconfig(shared: ApiServer, tmp_path: Path) -> Path:
    return shared.kubeconfig(tmp_path / "kubeconfig")


@pytest.fixture
def clock() -> Hurried:
    return Hurried()


def connect(kubeconfig: Path, clock: Hurried, timeout: float = 5.0) -> Cluster:
    return Cluster.connect(kubeconfig, timeout=timeout, clock=clock)


def counted(body: Json) -> Json:
    """One turn more."""
    return {"numTurns": (body.get("status") or {}).get("numTurns", 0) + 1}


# ------------------------------------------------------------------ errors


def test_no_error_of_the_client_is_left_untranslated() -> None:
    known = [
        kind
        for _, kind in inspect.getmembers(httpx2, inspect.isclass)
        if issubclass(kind, (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError))
        and kind is not httpx2.HTTPStatusError
    ]
    assert len(known) > 20
    for kind in known:
        error = kind.__new__(kind)
        assert isinstance(error, CLIENT_ERRORS), kind
        assert isinstance(map_client_error(error, "read it"), MidwatchError)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ClusterRefused),
        (401, ClusterRefused),
        (403, ClusterRefused),
        (404, ClusterRefused),
        (405, ClusterRefused),
        (408, ClusterUnavailable),
        (409, Conflict),
        (410, ClusterUnavailable),
        (413, ClusterRefused),
        (422, ClusterRefused),
        (429, ClusterUnavailable),
        (500, ClusterUnavailable),
        (503, ClusterUnavailable),
        (504, ClusterUnavailable),
    ],
)
def test_each_answer_is_worth_another_try_or_not(
    status: int, kind: type[MidwatchError]
) -> None:
    request = httpx2.Request("GET", "https://cluster.example")
    response = httpx2.Response(status, request=request, text="<html>")
    error = map_client_error(httpx2.HTTPStatusError("", request=request, response=response), "")  # type: ignore[arg-type]
    assert type(error) is kind


@pytest.mark.integration
async def test_an_answer_that_is_none(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    async with connect(kubeconfig, clock, timeout=0.3) as cluster:
        for inject in (
            lambda: server.faults.hang(times=1),
            lambda: server.faults.drop(times=1),
            lambda: server.faults.drop(at="middle", times=1),
        ):
            fault = inject()
            with pytest.raises(ClusterUnavailable):
                await cluster.list_pods("default", "s")
            server.faults.lift(fault)
    with server.away():
        async with connect(kubeconfig, clock) as cluster:
            with pytest.raises(ClusterUnavailable):
                await cluster.get_job("default", "x")


async def test_a_name_cannot_become_another_address(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    async with connect(kubeconfig, clock) as cluster:
        for name in ("../../secrets/x", "a/b", "..", "a?b", "A", ""):
            with pytest.raises(ClusterRefused):
                await cluster.get_session("default", name)
            with pytest.raises(ClusterRefused):
                await cluster.get_session(name, "s")
    assert len(server.requests) == 0


def test_settings_that_lead_nowhere_say_so(tmp_path: Path) -> None:
    broken, programs = tmp_path / "broken", tmp_path / "programs"
    broken.write_text("{")
    programs.write_text(
        "current-context: a\n"
        "clusters: [{name: a, cluster: {server: 'https://cluster.example'}}]\n"
        "contexts: [{name: a, context: {cluster: a, user: a}}]\n"
        "users: [{name: a, user: {auth-provider: {name: gcp}}}]\n"
    )
    for path in (tmp_path / "none", broken, None):
        with pytest.raises(SettingsError) as caught:
            Cluster.connect(path)
        assert caught.value.path == "operator.kubeconfig"
    with pytest.raises(SettingsError, match="by an auth-provider"):
        Cluster.connect(programs)


# ------------------------------------------------------------------ writing


async def test_a_write_on_a_known_resource_is_one_request(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    async with connect(kubeconfig, clock) as cluster:
        seen = await cluster.get_session("default", "s")
        server.requests.clear()
        seen = await cluster.write_status("default", "s", counted, seen=seen)
        seen = await cluster.write_status("default", "s", counted, seen=seen)
        assert seen["status"]["numTurns"] == 2 and len(server.requests) == 2
        same = await cluster.write_status("default", "s", lambda _: None, seen=seen)
        assert same == seen and len(server.requests) == 2


async def test_a_conflict_is_read_again_and_proposed_again(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    async with connect(kubeconfig, clock) as cluster:
        seen = await cluster.get_session("default", "s")
        for _ in range(2):
            other = {"status": {"numTurns": 40}}
            server.objects.merge("agenticsessions", "default", "s", other, sub="status")
        written = await cluster.write_status("default", "s", counted, seen=seen)
        assert written["status"]["numTurns"] == 41
        assert clock.slept == [0.0]


async def test_two_writers_lose_nothing(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    def write_along() -> None:
        for number in range(20):
            other = {"status": {"result": str(number)}}
            server.objects.merge("agenticsessions", "default", "s", other, sub="status")

    writer = threading.Thread(target=write_along)
    async with connect(kubeconfig, clock) as cluster:
        writer.start()
        for _ in range(20):
            await cluster.write_status("default", "s", counted, give_up_after=1e6)
        writer.join()
        status = (await cluster.get_session("default", "s"))["status"]
    assert (status["numTurns"], status["result"]) == (20, "19")


async def test_a_write_whose_answer_is_lost_is_not_done_twice(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    def once(body: Json) -> Json | None:
        return None if (body.get("status") or {}).get("numTurns") else {"numTurns": 1}

    server.faults.drop(asking("patch"), at="after", times=1)
    async with connect(kubeconfig, clock) as cluster:
        await cluster.write_status("default", "s", once)
    assert len(server.requests.where(asking("patch"))) == 1


async def test_a_server_that_asks_to_wait_is_waited_for(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    server.faults.refuse(asking("patch"), status=429, retry_after=7, times=2)
    async with connect(kubeconfig, clock) as cluster:
        await cluster.write_status("default", "s", counted)
        assert clock.slept == [7.0, 7.0]
        clock.slept.clear()
        server.faults.refuse(asking("patch"), status=503)
        with pytest.raises(ClusterUnavailable):
            await cluster.write_status("default", "s", counted, give_up_after=30)
    assert 15 < sum(clock.slept) <= 30
    assert clock.slept[0] < clock.slept[3]


async def test_a_finalizer_comes_and_goes_among_others(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    theirs = {"metadata": {"finalizers": ["example.com/theirs"]}}
    uid = server.objects.merge("agenticsessions", "default", "s", theirs)["metadata"][
        "uid"
    ]
    async with connect(kubeconfig, clock) as cluster:

        async def hold(present: bool) -> list[str]:
            body = await cluster.set_finalizer("default", "s", uid, present=present)
            return list(body["metadata"]["finalizers"])

        assert await hold(True) == ["example.com/theirs", FINALIZER]
        assert await hold(True) == ["example.com/theirs", FINALIZER]
        assert len(server.requests.where(asking("patch"))) == 1
        assert await hold(False) == ["example.com/theirs"]
        with pytest.raises(ResourceGone):
            await cluster.set_finalizer("default", "s", "other", present=True)
        with pytest.raises(ResourceGone):
            await cluster.set_finalizer("default", "none", uid, present=True)


# ------------------------------------------------------------------ objects


async def test_what_is_there_already_is_ours_or_is_named(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    labels = {SESSION_LABEL: "s", UID_LABEL: "u-1"}
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "s-session", "namespace": "default", "labels": labels},
    }
    theirs = {**account, "metadata": {**account["metadata"], "labels": {}}}  # type: ignore[dict-item]
    async with connect(kubeconfig, clock) as cluster:
        assert await cluster.create(account) is True
        assert await cluster.create(account) is False
        server.objects.delete("serviceaccounts", "default", "s-session")
        server.objects.create(theirs)
        with pytest.raises(NameTaken, match="s-session"):
            await cluster.create(account)
    server.objects.delete("serviceaccounts", "default", "s-session")


async def test_jobs_that_are_not_there_are_no_error(
    server: ApiServer, kubeconfig: Path, clock: Hurried
) -> None:
    async with connect(kubeconfig, clock) as cluster:
        assert await cluster.get_job("default", "none") is None
        assert await cluster.suspend_job("default", "none") is None
        assert await cluster.delete_job("default", "none") is False
        assert await cluster.list_jobs() == []
        with pytest.raises(ResourceGone):
            await cluster.get_session("default", "none")


@pytest.mark.integration
async def test_a_token_that_was_replaced_is_read_again(
    server: ApiServer, tmp_path: Path, clock: Hurried
) -> None:
    token = tmp_path / "token"
    config = tmp_path / "kubeconfig"
    config.write_text(
        "current-context: a\n"
        f"clusters: [{{name: a, cluster: {{server: '{server.url}'}}}}]\n"
        "contexts: [{name: a, context: {cluster: a, user: a}}]\n"
        f"users: [{{name: a, user: {{tokenFile: '{token}'}}}}]\n"
    )
    token.write_text("old")
    async with connect(config, clock) as cluster:
        with pytest.raises(PermanentError, match="401"):
            await cluster.list_sessions()
        token.write_text(server.admin_token + "\n")
        assert len(await cluster.list_sessions("default")) == 1
        token.unlink()
        assert len(await cluster.list_sessions("default")) == 1
    token.write_text("old")
    async with connect(config, clock) as cluster:
        token.unlink()
        with pytest.raises(TemporaryError, match="cannot read .*token: No such file"):
            await cluster.list_sessions()
