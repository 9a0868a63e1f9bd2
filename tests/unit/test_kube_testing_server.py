"""The API server of the tests, asked by the client that is used: lightkube."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import httpx2
import pytest
from lightkube import ApiError, AsyncClient, Client, KubeConfig
from lightkube.generic_resource import create_namespaced_resource
from lightkube.models.batch_v1 import JobSpec
from lightkube.models.core_v1 import (
    Container,
    ObjectReference,
    PodSpec,
    PodTemplateSpec,
)
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.batch_v1 import Job
from lightkube.resources.core_v1 import ConfigMap, Event, Pod, Secret
from lightkube.types import CascadeType, PatchType

from midwatch.kube.crd import crd
from tests.cluster import ApiServer, Refused, asking

from ..waiting import PATIENCE

pytestmark = pytest.mark.integration

WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.dev"},
    "spec": {
        "group": "example.dev",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget", "singular": "widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["size"],
                                "properties": {
                                    "size": {"type": "integer", "minimum": 1},
                                    "color": {"type": "string", "default": "red"},
                                    "parts": {
                                        "type": "array",
                                        "maxItems": 5,
                                        "items": {"type": "string"},
                                    },
                                },
                                "x-kubernetes-validations": [
                                    {
                                        "rule": "!has(self.parts) || self.size >= size(self.parts)",
                                        "message": "too many parts",
                                    },
                                    {
                                        "rule": "self.size >= oldSelf.size",
                                        "message": "it does not shrink",
                                    },
                                ],
                            },
                            "status": {
                                "type": "object",
                                "properties": {"phase": {"type": "string"}},
                            },
                        },
                    }
                },
            }
        ],
    },
}
Widget = create_namespaced_resource("example.dev", "v1", "Widget", "widgets")


@pytest.fixture(scope="module")
def shared() -> Iterator[ApiServer]:
    with ApiServer() as server:
        server.objects.create(WIDGETS)
        yield server


@pytest.fixture
def server(shared: ApiServer) -> Iterator[ApiServer]:
    """Each test has an empty journal, no faults, no widgets."""
    shared.requests.clear()
    yield shared
    shared.faults.clear()
    shared.enforce_rbac(False)
    for plural in ("widgets", "jobs", "pods", "secrets", "configmaps"):
        for found in shared.objects.list(plural):
            name = found["metadata"]["name"]
            shared.objects.merge(
                plural, "default", name, {"metadata": {"finalizers": []}}
            )
            shared.objects.delete(plural, "default", name, grace=0)


@pytest.fixture
def client(server: ApiServer, tmp_path: Path) -> Iterator[Client]:
    config = KubeConfig.from_file(server.kubeconfig(tmp_path / "kubeconfig"))
    client = Client(config, trust_env=False)
    yield client
    client.close()


def widget(name: str = "a", **spec: Any) -> Any:
    return Widget(metadata={"name": name}, spec={"size": 1, **spec})


def job(name: str = "work", **more: Any) -> Job:
    pod = PodSpec(
        containers=[Container(name="main", image="i:1")], restartPolicy="Never"
    )
    return Job(
        metadata=ObjectMeta(name=name),
        spec=JobSpec(template=PodTemplateSpec(spec=pod), **more),
    )


def refusal(info: pytest.ExceptionInfo[ApiError]) -> tuple[int | None, str | None]:
    return info.value.status.code, info.value.status.reason


def test_a_custom_resource_is_pruned_filled_and_refused(client: Client) -> None:
    made = client.create(widget(parts=[], nonsense=1))
    assert made.spec == {"size": 1, "color": "red", "parts": []}
    for bad, said in (
        ({"size": 0}, "spec.size in body should be greater than or equal to 1"),
        ({"size": "1"}, "spec.size in body must be of type integer"),
        ({"size": None}, "spec.size: Required value"),
        ({"parts": ["a", "b"]}, "too many parts"),
    ):
        with pytest.raises(ApiError, match=said) as info:
            client.create(widget("b", **bad))
        assert refusal(info) == (422, "Invalid")
    patch = {"spec": {"size": 5}}
    assert (
        client.patch(Widget, "a", patch, patch_type=PatchType.MERGE).spec["size"] == 5
    )
    with pytest.raises(ApiError, match="it does not shrink"):
        client.patch(Widget, "a", {"spec": {"size": 4}}, patch_type=PatchType.MERGE)


def test_generation_and_status_go_their_own_ways(client: Client) -> None:
    made = client.create(widget())
    patch = {"status": {"phase": "Up"}, "spec": {"size": 2}}
    main = client.patch(Widget, "a", patch, patch_type=PatchType.MERGE)
    assert (main.status, main.metadata.generation) == (None, 2)
    status = client.patch(Widget.Status, "a", patch, patch_type=PatchType.MERGE)
    assert (status.status, status.metadata.generation) == ({"phase": "Up"}, 2)
    again = client.patch(Widget.Status, "a", patch, patch_type=PatchType.MERGE)
    assert again.metadata.resourceVersion == status.metadata.resourceVersion
    labelled = {"metadata": {"labels": {"x": "y"}}}
    assert (
        client.patch(
            Widget, "a", labelled, patch_type=PatchType.MERGE
        ).metadata.generation
        == 2
    )
    old = {
        "metadata": {"resourceVersion": made.metadata.resourceVersion},
        "spec": {"size": 9},
    }
    with pytest.raises(ApiError) as info:
        client.patch(Widget, "a", old, patch_type=PatchType.MERGE)
    assert refusal(info) == (409, "Conflict")
    with pytest.raises(ApiError) as info:
        client.patch(Widget, "a", patch, patch_type=PatchType.STRATEGIC)
    assert refusal(info) == (415, "UnsupportedMediaType")


def test_built_in_kinds_are_held_to_their_schemas(
    server: ApiServer, client: Client
) -> None:
    made = client.create(job())
    assert made.spec and made.spec.template.metadata and made.metadata
    labels = made.spec.template.metadata.labels or {}
    assert labels["batch.kubernetes.io/job-name"] == "work"
    assert labels["controller-uid"] == made.metadata.uid
    with pytest.raises(ApiError) as info:
        client.create(job())
    assert refusal(info) == (409, "AlreadyExists")
    document = json.loads(json.dumps(server.objects.get("jobs", "default", "work")))
    for change, code, said in (
        ({"spec": {"bogus": 1}}, 400, 'unknown field "spec.bogus"'),
        ({"spec": {"backoffLimit": "x"}}, 400, "spec.backoffLimit"),
        (
            {"spec": {"template": {"spec": {"restartPolicy": "OnFailure"}}}},
            422,
            "immutable",
        ),
        ({"metadata": {"labels": {"a": "-"}}}, 422, "metadata.labels"),
    ):
        with pytest.raises(Refused, match=said) as refused:
            server.objects.merge("jobs", "default", "work", change)
        assert refused.value.code == code
    document["metadata"] = {"name": "other", "namespace": "nowhere"}
    with pytest.raises(Refused, match='namespaces "nowhere" not found'):
        server.objects.create(document)


def test_deletion_waits_for_finalizers_and_takes_what_is_owned(
    server: ApiServer, client: Client
) -> None:
    made = client.create(
        Widget(
            metadata={"name": "a", "finalizers": ["example.dev/f"]}, spec={"size": 1}
        )
    )
    owner = {"apiVersion": "example.dev/v1", "kind": "Widget", "name": "a"}
    owner |= {"uid": made.metadata.uid, "controller": True, "blockOwnerDeletion": True}
    owned = job()
    assert owned.metadata
    owned.metadata.ownerReferences = [owner]  # type: ignore[list-item]
    client.create(owned)
    client.create(ConfigMap(metadata=ObjectMeta(name="free")))
    client.delete(Widget, "a")
    lingering = client.get(Widget, "a")
    assert lingering.metadata.deletionTimestamp and lingering.metadata.generation == 2
    late = {"metadata": {"finalizers": ["example.dev/f", "example.dev/g"]}}
    with pytest.raises(ApiError, match="no new finalizers"):
        client.patch(Widget, "a", late, patch_type=PatchType.MERGE)
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": "1"}
    remove = {"op": "remove", "path": "/metadata/finalizers/0"}
    with pytest.raises(ApiError) as info:
        client.patch(Widget, "a", [test, remove], patch_type=PatchType.JSON)
    assert refusal(info) == (422, "Invalid")
    assert server.objects.find("jobs", "default", "work")
    client.patch(Widget, "a", [remove], patch_type=PatchType.JSON)
    server.objects.wait("jobs", "default", "work", lambda found: found is None)
    assert server.objects.find("widgets", "default", "a") is None
    assert client.get(ConfigMap, "free")


def pod_of(server: ApiServer, owner: Any) -> None:
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner.metadata.name}
    reference |= {"uid": owner.metadata.uid, "blockOwnerDeletion": True}
    meta = {"name": "p", "ownerReferences": [reference]}
    spec = {"containers": [{"name": "c", "image": "i"}]}
    server.objects.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
    )


def test_a_job_that_is_deleted_leaves_its_pods_unless_told_otherwise(
    server: ApiServer, client: Client
) -> None:
    pod_of(server, client.create(job()))
    client.delete(Job, "work")
    server.objects.wait("jobs", "default", "work", lambda found: found is None)
    orphan = client.get(Pod, "p")
    assert orphan.metadata and not orphan.metadata.ownerReferences
    client.delete(Pod, "p")
    pod_of(server, client.create(job()))
    client.delete(Job, "work", cascade=CascadeType.FOREGROUND)
    server.objects.wait("jobs", "default", "work", lambda found: found is None)
    assert server.objects.find("pods", "default", "p") is None


async def test_watches_begin_where_they_are_told_and_end_as_they_are_told(
    server: ApiServer, tmp_path: Path
) -> None:
    config = KubeConfig.from_file(server.kubeconfig(tmp_path / "kubeconfig"))
    async with AsyncClient(config, trust_env=False) as client:
        made = await client.create(widget("a"))
        await client.create(
            Widget(metadata={"name": "b", "labels": {"x": "y"}}, spec={"size": 1})
        )
        server.objects.merge("widgets", "default", "b", {"metadata": {"labels": None}})
        seen = []
        async for type, found in client.watch(
            Widget,
            labels={"x": "y"},
            resource_version=made.metadata.resourceVersion,
            server_timeout=1,
        ):
            seen.append((type, found.metadata.name, found.metadata.labels))
            if len(seen) == 2:
                break
        # As it was when it was seen last, but at the version of the change that took it away.
        assert seen == [("ADDED", "b", {"x": "y"}), ("DELETED", "b", {"x": "y"})]
        now = server.objects.get("widgets", "default", "b")["metadata"]
        assert found.metadata.resourceVersion == now["resourceVersion"]
        server.forget_history()
        server.objects.merge("widgets", "default", "a", {"spec": {"size": 2}})
        with pytest.raises(ApiError, match="too old resource version") as info:
            async for _ in client.watch(
                Widget, resource_version=made.metadata.resourceVersion
            ):
                pass
        assert info.value.status.code == 410


async def test_a_watch_from_a_version_to_come_waits_for_it(
    server: ApiServer, tmp_path: Path
) -> None:
    """As after the store was restored from a backup: no error, and nothing that is older."""
    config = KubeConfig.from_file(server.kubeconfig(tmp_path / "kubeconfig"))
    async with AsyncClient(config, trust_env=False) as client:
        made = await client.create(widget("a"))
        later = str(int(made.metadata.resourceVersion) + 1)
        asking_ = client.watch(Widget, resource_version=later, server_timeout=5)
        events = aiter(asking_)
        first = asyncio.ensure_future(anext(events))
        while not server.faults.watches:
            await asyncio.sleep(0.01)
        for size in (2, 3):
            patch = {"spec": {"size": size}}
            await asyncio.to_thread(
                server.objects.merge, "widgets", "default", "a", patch
            )
        _, found = await asyncio.wait_for(first, PATIENCE)
        assert found.spec["size"] == 3
        await asking_.aclose()


def test_what_goes_with_its_last_finalizer_is_told_of_once(server: ApiServer) -> None:
    about = {"name": "held", "finalizers": ["example.dev/held"]}
    held = {"apiVersion": "example.dev/v1", "kind": "Widget", "spec": {"size": 1}}
    server.objects.create(held | {"metadata": about})
    told: list[tuple[str, Any]] = []
    server.listen(
        lambda change: told.append(
            (change.type, change.document["metadata"].get("finalizers"))
        )
    )
    server.objects.delete("widgets", "default", "held")
    done = {"metadata": {"finalizers": []}}
    server.objects.merge("widgets", "default", "held", done)
    assert told == [
        ("MODIFIED", ["example.dev/held"]),
        ("DELETED", ["example.dev/held"]),
    ]


@pytest.mark.parametrize("selector", ["(", "a b", "-x=y", "x=a b", "x in (a,-b)"])
def test_a_label_selector_that_is_none_is_refused(
    server: ApiServer, selector: str
) -> None:
    with pytest.raises(Refused) as info:
        server.objects.list("pods", "default", selector)
    assert info.value.code == 400


def test_a_patch_cannot_say_which_uid_it_is_for(client: Client) -> None:
    """It is no conflict, which a client would try again."""
    client.create(widget("a"))
    with pytest.raises(ApiError) as info:
        client.patch(
            Widget, "a", {"metadata": {"uid": "x"}}, patch_type=PatchType.MERGE
        )
    assert info.value.status.code == 422


def get(server: ApiServer, path: str, timeout: float = PATIENCE) -> Any:
    headers = {"Authorization": f"Bearer {server.admin_token}"}
    request = urllib.request.Request(server.url + path, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


def test_faults_strike_as_told(server: ApiServer) -> None:
    pods = "/api/v1/pods"
    when = asking("list", "pods")
    server.faults.refuse(when, status=429, retry_after=7, times=1)
    with pytest.raises(urllib.error.HTTPError) as info:
        get(server, pods)
    with info.value as refused:
        assert (refused.code, refused.headers["Retry-After"]) == (429, "7")
    assert get(server, pods)["kind"] == "PodList"
    server.faults.drop(when, times=1)
    with pytest.raises(OSError):
        get(server, pods)
    server.faults.drop(when, at="middle", times=1)
    with pytest.raises(HTTPException):
        get(server, pods)
    headers = {"Authorization": f"Bearer {server.admin_token}"}
    stream = urllib.request.Request(f"{server.url}{pods}?watch=1", headers=headers)
    with urllib.request.urlopen(stream, timeout=0.2) as half_open:
        assert server.faults.freeze_watches(asking("watch", "pods")) == 1
        spec = {"containers": [{"name": "c", "image": "i"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
        server.objects.create({**pod, "spec": spec})
        with pytest.raises(TimeoutError):
            half_open.readline()
    hang = server.faults.hang(when)
    with pytest.raises(TimeoutError):
        get(server, pods, timeout=0.1)
    server.faults.lift(hang)
    with server.away(), pytest.raises(urllib.error.URLError, match="refused"):
        get(server, pods)
    assert get(server, pods)
    statuses = [request.status for request in server.requests.where(when)]
    assert [statuses[0], statuses[1], statuses[-1]] == [429, 200, 200]


def role(name: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name, "namespace": "default"},
        "rules": list(rules),
    }


def test_roles_are_enough_and_no_more(server: ApiServer, tmp_path: Path) -> None:
    objects = server.objects
    objects.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}}
    )
    rules = {
        "apiGroups": ["example.dev"],
        "resources": ["widgets"],
        "verbs": ["get", "create"],
    }
    naming = {
        **rules,
        "resources": ["widgets/status"],
        "verbs": ["patch"],
        "resourceNames": ["a"],
    }
    makes = {
        "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["roles"],
        "verbs": ["create"],
    }
    objects.apply(role("bot", rules, naming, makes))
    objects.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "bot"},
            "roleRef": {
                "kind": "Role",
                "name": "bot",
                "apiGroup": "rbac.authorization.k8s.io",
            },
            "subjects": [
                {"kind": "ServiceAccount", "name": "bot", "namespace": "default"}
            ],
        }
    )
    server.enforce_rbac()
    token = server.token_for("default", "bot")
    path = server.kubeconfig(tmp_path / "kubeconfig", token)
    client = Client(KubeConfig.from_file(path), trust_env=False)
    try:
        client.create(widget("a"))
        client.create(widget("b"))
        status = {"status": {"phase": "Up"}}
        client.patch(Widget.Status, "a", status, patch_type=PatchType.MERGE)
        for refused in (
            lambda: client.patch(
                Widget.Status, "b", status, patch_type=PatchType.MERGE
            ),
            lambda: list(client.list(Widget)),
            lambda: client.get(Secret, "s"),
        ):
            with pytest.raises(
                ApiError, match="system:serviceaccount:default:bot"
            ) as info:
                refused()
            assert refusal(info) == (403, "Forbidden")
        post(server, token, role("less", rules))
        with pytest.raises(urllib.error.HTTPError) as taken:
            post(server, token, role("more", {**rules, "verbs": ["delete"]}))
        with taken.value as answer:
            assert b"attempting to grant" in answer.read()
        objects.delete("serviceaccounts", "default", "bot")
        with pytest.raises(ApiError) as info:
            client.get(Widget, "a")
        assert refusal(info) == (401, "Unauthorized")
    finally:
        client.close()


def post(server: ApiServer, token: str, document: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    url = f"{server.url}/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles"
    body = json.dumps(document).encode()
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=PATIENCE):
        pass


async def meet(client: AsyncClient, one: Any, seen: list[str]) -> None:
    """What an operator does: hold a resource back, tell of it, let it go when it is deleted."""
    name, gone = one.metadata.name, one.metadata.deletionTimestamp
    if gone or name not in seen:
        held = {"metadata": {"finalizers": [] if gone else ["example.dev/held"]}}
        await client.patch(Widget, name, held, patch_type=PatchType.MERGE)
    if not gone and name not in seen:
        about = ObjectReference(kind="Widget", name=name, namespace="default")
        event = Event(
            metadata=ObjectMeta(name=f"{name}.1"),
            involvedObject=about,
            reason="Seen",
            message="it is there",
        )
        await client.create(event)
        seen.append(name)


async def operate(kubeconfig: Path, seen: list[str]) -> None:
    config = KubeConfig.from_file(kubeconfig)
    async with AsyncClient(config, trust_env=False) as client:
        while True:
            with contextlib.suppress(httpx2.HTTPError):
                listed = client.list(Widget)
                async for one in listed:
                    await meet(client, one, seen)
                version = listed.resourceVersion
                async for kind, one in client.watch(Widget, resource_version=version):
                    if kind != "DELETED":
                        await meet(client, one, seen)
            await asyncio.sleep(0.02)


def test_an_operator_lives_on_it(server: ApiServer, tmp_path: Path) -> None:
    """Finalizers and events; through a broken watch and a server that was gone."""
    seen: list[str] = []

    async def run() -> None:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
        running = asyncio.create_task(operate(kubeconfig, seen))
        for name, trouble in (
            ("a", lambda: None),
            ("b", lambda: server.faults.break_watches(asking(resource="widgets"))),
            ("c", lambda: (server.go_away(), server.come_back())),
            ("d", server.forget_history),
        ):
            await asyncio.to_thread(trouble)
            server.objects.create(
                {
                    "apiVersion": "example.dev/v1",
                    "kind": "Widget",
                    "metadata": {"name": name},
                    "spec": {"size": 1},
                }
            )
            end = time.monotonic() + PATIENCE
            while name not in seen and time.monotonic() < end:
                await asyncio.sleep(0.02)
            assert name in seen
        assert server.objects.get("widgets", "default", "a")["metadata"]["finalizers"]
        await asyncio.to_thread(server.objects.delete, "widgets", "default", "a")
        await asyncio.to_thread(
            server.objects.wait, "widgets", "default", "a", lambda found: found is None
        )
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(run())
    assert [e["reason"] for e in server.objects.list("events")][:1] == ["Seen"]


def test_a_thousand_resources_are_nothing(server: ApiServer) -> None:
    began = time.monotonic()
    for number in range(1000):
        server.objects.create(
            {
                "apiVersion": "example.dev/v1",
                "kind": "Widget",
                "metadata": {"name": f"w{number}"},
                "spec": {"size": 1},
            }
        )
    page = get(server, "/apis/example.dev/v1/widgets?limit=400")
    rest = get(
        server,
        f"/apis/example.dev/v1/widgets?limit=1000&continue={page['metadata']['continue']}",
    )
    assert len(page["items"]) + len(rest["items"]) == 1000
    assert time.monotonic() - began < PATIENCE


@pytest.fixture(scope="module")
def ours(shared: ApiServer) -> ApiServer:
    """With the definition of AgenticSession."""
    shared.objects.create(crd())
    return shared


def test_only_a_kind_itself_has_short_names(ours: ApiServer) -> None:
    """kubectl warns of a name that stands for two resources."""
    found = get(ours, "/apis/midwatch.dev/v1alpha1")["resources"]
    short = {one["name"]: one.get("shortNames", []) for one in found}
    assert short == {"agenticsessions": ["as"], "agenticsessions/status": []}


def test_a_session_whose_repositories_have_names_is_taken(ours: ApiServer) -> None:
    """Their rule calls `lowerAscii`, of Kubernetes' own additions to CEL."""
    place = {"input": {"url": "https://git.example.com/team/shop.git"}}
    body = {
        "apiVersion": "midwatch.dev/v1alpha1",
        "kind": "AgenticSession",
        "metadata": {"name": "named", "namespace": "default"},
        "spec": {"prompt": "x", "repos": [place | {"name": "Shop"}, place]},
    }
    made = ours.objects.create(body)
    assert made["spec"]["repos"][0]["name"] == "Shop"
    body["metadata"] = {"name": "twice", "namespace": "default"}
    repos = [place | {"name": "Shop"}, place | {"name": "shop"}]
    with pytest.raises(Refused, match="two repositories have the same name"):
        ours.objects.create(body | {"spec": {"prompt": "x", "repos": repos}})
