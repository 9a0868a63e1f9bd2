"""The real process: killed at random points, stopped in the middle of work, two on one volume, a full disk."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midwatch.content.tree import (
    EMPTY,
    MEDIA_TYPE,
    Entry,
    chunk_hash,
    encode_frame,
    version_of,
)

from ..waiting import PATIENCE, alive, wait_until
from .cli import refused, said
from .content_proxy import (
    FOLDER,
    KEY,
    bearer,
    check_whole,
    file,
    process,
    stored_chunks,
    waits,
)

AT = f"/v1/folders/{FOLDER}"
HEADERS = bearer()
AS_JSON = HEADERS | {"content-type": "application/json"}
AS_FRAMES = HEADERS | {"content-type": MEDIA_TYPE}


@contextmanager
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, timeout=PATIENCE, verify=False) as opened:
        yield opened


def commit(http: httpx2.Client, base: str, put: dict[str, Entry]) -> httpx2.Response:
    body = json.dumps({"put": {path: e.to_json() for path, e in put.items()}})
    return http.post(
        f"{AT}/commit",
        content=body.encode(),
        headers=AS_JSON | {"if-match": f'"{base}"'},
    )


def put_chunks(http: httpx2.Client, *data: bytes) -> httpx2.Response:
    frames = b"".join(map(encode_frame, data))
    return http.put(f"{AT}/chunks", content=frames, headers=AS_FRAMES)


def manifest(http: httpx2.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"{AT}/manifest", headers=HEADERS).json()
    return found


# ------------------------------------------------------------------ killed


def test_killed_at_any_point_a_folder_has_one_whole_version(tmp_path: Path) -> None:
    chance = random.Random(4)
    tree: dict[str, Entry] = {}
    for _ in range(5):
        with process(tmp_path) as (url, pid), client(url) as http:
            # What was acknowledged is there; the one in flight at the kill may be.
            version = manifest(http)["version"]
            allowed = [version_of(tree), version_of(_next(tree))]
            assert version in allowed
            if version != allowed[0]:
                tree = _next(tree)
            kill = threading.Timer(
                chance.uniform(0, 0.01), os.kill, [pid, signal.SIGKILL]
            )
            tree = _commit_until_killed(http, tree, chance.randint(1, 15), kill)
        assert check_whole(tmp_path / "volume") in (len(tree), len(_next(tree)))
    assert len(tree) > 30, "nothing much was committed"


def _next(tree: dict[str, Entry]) -> dict[str, Entry]:
    """Return the next version of the tree: two new files, and one with new content."""
    count = len(tree)
    return tree | {
        f"workspace/{count}": file(f"new {count}".encode() * 100),
        f"workspace/{count + 1}": Entry("folder", 0o755),
        "workspace/head": file(f"head {count}".encode()),
    }


def _commit_until_killed(
    http: httpx2.Client, tree: dict[str, Entry], first: int, kill: threading.Timer
) -> dict[str, Entry]:
    """Commit this many times, then continue until the kill arrives."""
    try:
        for done in itertools.count():
            if done == first:
                kill.start()
            new = _next(tree)
            count = len(tree)
            put_chunks(http, f"new {count}".encode() * 100, f"head {count}".encode())
            changed = {path: e for path, e in new.items() if tree.get(path) != e}
            answer = commit(http, version_of(tree), changed)
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"] == version_of(new)
            tree = new
    except httpx2.TransportError:
        pass
    return tree


# ------------------------------------------------------------------ two of them


def test_two_processes_on_one_volume_lose_no_update(tmp_path: Path) -> None:
    with process(tmp_path) as (one, _), process(tmp_path) as (two, _):
        with ThreadPoolExecutor() as threads:
            done = threads.map(_add_files, [one, two, one, two], "abcd", [10] * 4)
            conflicts = sum(done)
        with client(one) as http:
            paths = manifest(http)["tree"]
            assert len(paths) == 40
            # A change through one process ends a wait at the other.
            waited = threading.Thread(target=_wait_for_change, args=(two,))
            waited.start()
            _add_files(one, "e", 1)
            waited.join(PATIENCE)
            assert not waited.is_alive()
    assert conflicts > 0, "they did not meet"
    assert check_whole(tmp_path / "volume") == 41


def _add_files(url: str, name: str, times: int) -> int:
    """Add files to the current version. Return how often another client was quicker."""
    conflicts = 0
    with client(url) as http:
        while times:
            found = manifest(http)
            answer = commit(http, found["version"], {f"{name}{times}": file(b"")})
            assert answer.status_code in (200, 412), answer.text
            if answer.status_code == 200:
                times -= 1
            else:
                conflicts += 1
    return conflicts


def _wait_for_change(url: str) -> None:
    with client(url) as http:
        version = manifest(http)["version"]
        headers = HEADERS | {"if-none-match": f'"{version}"'}
        http.get(f"{AT}/manifest?wait=600", headers=headers)


# ------------------------------------------------------------------ stopped


def test_a_stop_lets_an_upload_finish_and_ends_a_wait(tmp_path: Path) -> None:
    sending, told = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        frames = encode_frame(b"first") + encode_frame(b"last")
        yield frames[:50]
        sending.set()
        assert told.wait(PATIENCE)
        yield frames[50:]

    with process(tmp_path, WAIT="600s") as (url, pid), ThreadPoolExecutor() as threads:
        with client(url) as http, client(url) as other:
            upload = threads.submit(
                http.put, f"{AT}/chunks", content=slowly(), headers=AS_FRAMES
            )
            waiting = threads.submit(
                other.get,
                f"{AT}/manifest?wait=600",
                headers=HEADERS | {"if-none-match": f'"{EMPTY}"'},
            )
            assert sending.wait(PATIENCE)
            with client(url) as probe:
                wait_until(lambda: waits(probe.get("/metrics")), PATIENCE)
            began = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            assert waiting.result(PATIENCE).status_code == 304
            assert time.monotonic() - began < PATIENCE, "it did not wait to the end"
            told.set()
            assert upload.result(PATIENCE).json() == {"stored": 2}
        wait_until(lambda: not alive(pid))
    stored = stored_chunks(tmp_path / "volume" / "folders" / FOLDER)
    assert stored[chunk_hash(b"last")] == b"last"


def test_an_upload_that_never_ends_is_cut_at_the_grace(tmp_path: Path) -> None:
    with process(tmp_path, GRACE="500ms") as (url, pid):
        host, port = url.removeprefix("http://").split(":")
        head = f"PUT {AT}/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
        given_ = "".join(f"{name}: {value}\r\n" for name, value in AS_FRAMES.items())
        with _connected(host, int(port)) as connection:
            connection.sendall(f"{head}{given_}\r\n".encode())
            time.sleep(0.2)
            os.kill(pid, signal.SIGTERM)
            connection.settimeout(PATIENCE)
            while connection.recv(1000):
                pass


def _connected(host: str, port: int) -> Any:
    import socket

    return socket.create_connection((host, port))


# ------------------------------------------------------------------ a full disk

_TMPFS = 'mkdir -p volume; mount -t tmpfs -o size=8m none volume; exec "$0" "$@"'


def _can_mount(folder: Path) -> bool:
    """Return whether an ordinary user may mount in a namespace of their own here."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", _TMPFS, "true"], cwd=folder, capture_output=True
    )
    return done.returncode == 0


def test_a_full_volume_loses_nothing(tmp_path: Path) -> None:
    if not _can_mount(tmp_path):
        pytest.skip("no file system can be mounted here")
    unshare = ("unshare", "-rm", "sh", "-c", _TMPFS)
    with process(tmp_path, *unshare) as (url, _), client(url) as http:
        assert put_chunks(http, b"small").status_code == 200
        version = commit(http, EMPTY, {"a": file(b"small")}).json()["version"]
        chunks = [os.urandom(1 << 20) for _ in range(10)]
        answer = put_chunks(http, *chunks)
        assert answer.status_code == 507 and answer.json()["hint"]
        # What did not fit left no half chunk, and the version is as it was.
        assert manifest(http)["version"] == version
        for size in (1 << 20, 1 << 16, 4096):
            while put_chunks(http, os.urandom(size)).is_success:
                pass
        answer = commit(http, version, {f"f{n}": Entry("folder") for n in range(2000)})
        assert answer.status_code == 507
        assert http.get("/readyz").status_code == 507
        found = manifest(http)
        assert (found["version"], set(found["tree"])) == (version, {"a"})
        deleted = http.delete(AT, headers=HEADERS)
        assert deleted.json() == {"deleted": True}
        assert http.get("/readyz").status_code == 200


# ------------------------------------------------------------------ paths

hostile = st.text(
    st.sampled_from(["/", ".", "a", "\0", "\\", "\n", "é", "\udcff", "\ud800"]),
    min_size=1,
    max_size=10,
)


def test_no_path_touches_a_file_outside(tmp_path: Path) -> None:
    allowed = re.compile(
        rf"key|log-[0-9a-f]{{32}}|volume(/\.midwatch-content|/folders(/team(/{FOLDER[5:]}(/manifest\.jsonl|/lock"
        r"|/segments(/[0-9a-f]{32}\.[0-9]+)?)?)?)?|/beside(/[0-9a-f]{32}(/lock)?)?)?"
    )

    def attempt(http: httpx2.Client, path: str, target: str, plain: str) -> None:
        http.put(f"{AT}/chunks", content=encode_frame(b"x"), headers=AS_FRAMES)
        put = {path: file(b"x").to_json(), f"link{path[:1]}": ["l", target]}
        body = json.dumps({"put": put}).encode()
        answer = http.post(
            f"{AT}/commit", content=body, headers=AS_JSON | {"if-match": f'"{EMPTY}"'}
        )
        assert answer.status_code in (200, 422), answer.text
        for form in (plain, f"/sessions/fix/{plain}", f"../{plain}"):
            body = json.dumps({"path": form, "content": "y"}).encode()
            answer = http.post("/content/write", content=body, headers=AS_JSON)
            assert answer.status_code in (200, 400, 403), answer.text
        for place, folders, files in os.walk(tmp_path):
            for found in (Path(place, name) for name in folders + files):
                assert not found.is_symlink()
                assert allowed.fullmatch(str(found.relative_to(tmp_path)))
        assert http.delete(AT, headers=AS_JSON).status_code == 200

    with process(tmp_path) as (url, _), client(url) as http:

        @settings(max_examples=60)
        @given(hostile, hostile, hostile)
        def examples(path: str, target: str, plain: str) -> None:
            attempt(http, path, target, plain)

        examples()


# ------------------------------------------------------------------ the commands


def test_a_token_of_the_command_opens_the_folder(tmp_path: Path) -> None:
    with process(tmp_path) as (url, _), client(url) as http:
        key = {"MIDWATCH_CONTENT__KEY_FILE": "key"}
        token = said(tmp_path, "content", "token", FOLDER, env=key).strip()
        answer = http.get(
            f"{AT}/manifest", headers={"authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 200
        # Another key, while it runs: what the old one signed is worth nothing.
        (tmp_path / "key").write_bytes(KEY[::-1])
        assert http.get(f"{AT}/manifest", headers=HEADERS).status_code == 401
        new = bearer(key=KEY[::-1])
        assert http.get(f"{AT}/manifest", headers=new).status_code == 200
        line = refused(tmp_path, "content", "token", "team/fix", env=key, code=2)
        assert "NAMESPACE/NAME.UID" in line


def test_settings_that_cannot_be_served(tmp_path: Path) -> None:
    assert "openssl rand" in refused(tmp_path, "content", "serve", code=2)
    (tmp_path / "key").write_bytes(KEY)
    key = {"MIDWATCH_CONTENT__KEY_FILE": "key"}
    (tmp_path / "content").write_text("a file")
    line = refused(tmp_path, "content", "serve", env=key, code=2)
    assert "content.root" in line
    (tmp_path / "content").unlink()
    taken = key | {"MIDWATCH_CONTENT__HOST": "192.0.2.1"}
    assert "cannot listen" in refused(tmp_path, "content", "serve", env=taken, code=2)
