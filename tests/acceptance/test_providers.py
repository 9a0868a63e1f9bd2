"""Every line of "What the installed versions do" in docs/providers.md, with the SDK and the program that are installed."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme

from midwatch.agent.claude import Claude, probe
from midwatch.agent.diagnosis import Prompt, paid
from midwatch.diagnosis_schema import Kind
from midwatch.errors import MidwatchError
from midwatch.model import Context, Usage
from midwatch.pricing import cost_usd
from midwatch.provider import ApiAccess
from midwatch.session.agentic_session import AsyncAgenticSession
from midwatch.session.events import Message, Started, TurnResult
from midwatch.session.log import conversation_id
from midwatch.session.transcripts import FileTranscripts, read_entries
from midwatch.testing import messages_api as api_
from midwatch.testing.fakes import collect, only, options, session_in
from midwatch.testing.messages_api import (
    Answer,
    Drip,
    Error,
    Rule,
    ScriptedMessagesAPI,
    ToolUse,
    bad_request,
    fingerprint,
    unknown_model,
)

from ..waiting import PATIENCE

DOCUMENT = Path(__file__).parents[2] / "docs" / "providers.md"
HELD: dict[str, str] = {}
Test = TypeVar("Test", bound=Callable[..., Any])


def holds(line: str) -> Callable[[Test], Test]:
    """Mark the test that holds the line of the document that begins like this."""

    def mark(test: Test) -> Test:
        assert line not in HELD
        HELD[line] = test.__name__
        return test

    return mark


def lines() -> list[str]:
    _, _, text = DOCUMENT.read_text().partition("## What the installed versions do")
    return re.findall(r"^- (.*)$", text, re.M)


def test_every_line_is_held_by_a_test() -> None:
    written = lines()
    assert len(written) > 15
    for line in written:
        assert len([one for one in HELD if line.startswith(one)]) == 1, line
    assert len(written) == len(HELD)


async def test_the_document_names_the_installed_versions(tmp_path: Path) -> None:
    text = DOCUMENT.read_text()
    found = re.search(r"with anthropic ([\d.]+) and claude ([\d.]+)\.$", text, re.M)
    assert found and version("anthropic").startswith(f"{found[1]}.")
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        (started,) = only(await collect(session_in(tmp_path, api), "Hi."), Started)
    assert started.program_version == found[2]


# ------------------------------------------------------------------ helpers


def diagnosing(access: ApiAccess, model: str = "claude-sonnet-5-5") -> Claude:
    return Claude(model, PATIENCE, access)


async def diagnosed(access: ApiAccess, model: str = "claude-sonnet-5-5") -> Any:
    claude = diagnosing(access, model)
    try:
        return await claude.ask(Prompt("Diagnose.", "It is slow."), 100)
    finally:
        await claude.close()


def session_with(root: Path, access: ApiAccess, **more: Any) -> AsyncAgenticSession:
    root.mkdir(parents=True, exist_ok=True)
    limited = options(limits={"retries": 0})
    return session_in(root, "", client=access, **{"options": limited, **more})


async def said(root: Path, access: ApiAccess, **more: Any) -> str:
    """Run a session; its answer, or the error that ended it."""
    session = session_with(root, access, **more)
    try:
        await collect(session, "Hi.")
    except MidwatchError as error:
        return error.one_line()
    return session.status().result


@dataclass
class Recorder:
    """A server that answers every request with 403, and keeps what was asked."""

    port: int = 0
    heads: list[str] = field(default_factory=list)

    @property
    def asked(self) -> list[str]:
        return [head.split(" HTTP/")[0] for head in self.heads]


@asynccontextmanager
async def recorder(tls: ssl.SSLContext | None = None) -> AsyncIterator[Recorder]:
    found = Recorder()
    body = b'{"type":"error","error":{"type":"permission_error","message":"no"}}'
    head = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = (await reader.readuntil(b"\r\n\r\n")).decode()
            found.heads.append(asked)
            if length := re.search(r"content-length: (\d+)", asked, re.I):
                await reader.readexactly(int(length[1]))
            writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    async with server:
        yield found


async def both(root: Path, access: ApiAccess, model: str = "claude-sonnet-5-5") -> None:
    """Ask once through the SDK and once through the program; both are refused."""
    await diagnosed(access, model)
    await said(root, access, model=model)


# ------------------------------------------------------------------ what they send


@holds("The SDK sends a key as")
async def test_the_sdk_sends_a_key() -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        await diagnosed(ApiAccess("sk-test", api.base_url))
        headers = api.calls[0].headers
    assert headers["authorization"] == fingerprint("Bearer sk-test")
    assert headers["anthropic-version"] == "2026-10-21" and "x-api-key" not in headers


@holds("The program sends a key as")
async def test_the_program_sends_a_key(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        assert await said(tmp_path, ApiAccess("sk-test", api.base_url)) == "Fine."
        headers = api.calls[0].headers
    assert headers["x-api-key"] == fingerprint("sk-test")
    assert headers["anthropic-version"] == "2023-06-01"
    assert "authorization" not in headers


@holds("Both send a token as")
async def test_both_send_a_token_and_headers(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        environ = {
            "ANTHROPIC_AUTH_TOKEN": "gateway-token",
            "ANTHROPIC_BASE_URL": api.base_url,
            "ANTHROPIC_CUSTOM_HEADERS": "X-Team: ops\nX-Cost-Centre: 7",
        }
        access = ApiAccess.from_environ(environ)
        await diagnosed(access)
        assert await said(tmp_path, access) == "Fine."
        assert len(api.calls) == 2
        for call in api.calls:
            assert call.headers["authorization"] == fingerprint("Bearer gateway-token")
            assert "x-api-key" not in call.headers
            assert call.headers["x-team"] == "ops"
            assert call.headers["x-cost-centre"] == "7"


@holds("Both take the proxy of")
async def test_both_take_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recorder() as proxy, recorder() as direct:
        url = f"http://127.0.0.1:{proxy.port}"
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            proxy.heads.clear()
            with monkeypatch.context() as patch:
                patch.setenv(name, url)
                access = ApiAccess(
                    "sk-test", "https://gateway.invalid", environ={name: url}
                )
                await both(tmp_path / name, access)
            asked = Counter(proxy.asked)
            assert set(asked) == {"CONNECT gateway.invalid:443"}, (name, asked)
            assert asked.total() >= 2
        proxy.heads.clear()
        environ = {"HTTP_PROXY": url, "ALL_PROXY": url, "NO_PROXY": "127.0.0.1"}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        access = ApiAccess("k", f"http://127.0.0.1:{direct.port}", environ=environ)
        await both(tmp_path / "none", access)
        assert not proxy.heads and len(direct.heads) >= 2


@holds("Both trust the certificates of")
async def test_both_trust_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    folder = tmp_path / "trusted"
    folder.mkdir()
    file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    _hash_names(folder, file)
    async with recorder(tls) as server:
        url = f"https://localhost:{server.port}"
        await both(tmp_path / "no", ApiAccess("k", url))
        assert not server.heads
        for name, value in (
            ("SSL_CERT_FILE", file),
            ("SSL_CERT_DIR", folder),
            ("NODE_EXTRA_CA_CERTS", file),
        ):
            server.heads.clear()
            with monkeypatch.context() as patch:
                patch.setenv(name, str(value))
                environ = {name: str(value)}
                await both(tmp_path / name, ApiAccess("k", url, environ=environ))
                one = len(server.heads)
                assert one >= 2, (name, server.asked)
                headers = {"X-Team": "ops"}
                more = ApiAccess("k", url, headers=headers, environ=environ)
                await said(tmp_path / f"{name}-relay", more)
                assert len(server.heads) > one, name


def _hash_names(folder: Path, file: Path) -> None:
    """Name a certificate as OpenSSL looks for it in a folder."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    (folder / f"{_subject_hash(certificate)}.0").symlink_to(file)


def _subject_hash(certificate: Any) -> str:
    import subprocess

    asked = ["openssl", "x509", "-noout", "-subject_hash"]
    from cryptography.hazmat.primitives.serialization import Encoding

    pem = certificate.public_bytes(Encoding.PEM)
    return subprocess.run(asked, input=pem, capture_output=True, check=True).stdout.decode().strip()  # fmt: skip


@holds("The SDK asks for")
async def test_the_sdk_asks_for_messages() -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        access = ApiAccess("sk-test", api.base_url)
        await diagnosed(access)
        assert (await probe(access, "claude-sonnet-5-5")).works
        asked = [(r.method, r.path, r.query) for r in api.requests]
    assert asked == [
        ("POST", "/v1/messages", ""),
        ("GET", "/v1/models/claude-sonnet-5-5", ""),
    ]
    missing = Rule(unknown_model(), path="/v1/models/claude-sonnet-5-5", method="GET")
    async with ScriptedMessagesAPI(missing) as api:
        access = ApiAccess("sk-test", api.base_url)
        assert (await probe(access, "claude-sonnet-5-5")).works
        assert api.requests[-1].path == "/v1/messages/count_tokens"


@holds("The program asks for")
async def test_the_program_asks_for_messages(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Answer("Fine.")) as api:
        await said(tmp_path, ApiAccess("sk-test", api.base_url))
        (asked,) = api.requests
    assert (asked.method, asked.path, asked.query) == (
        "POST",
        "/v1/messages",
        "beta=true",
    )
    assert asked.stream


@holds("On Bedrock the SDK")
async def test_on_bedrock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
    async with recorder() as server:
        environ = {
            "AWS_REGION": "eu-west-1",
            "AWS_BEARER_TOKEN_BEDROCK": "bedrock-token",
            "ANTHROPIC_BEDROCK_BASE_URL": f"http://127.0.0.1:{server.port}",
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        access = ApiAccess.from_environ(environ, provider="bedrock")
        await diagnosed(access, model)
        await said(tmp_path, access, model=model)
    assert server.asked[0] == f"POST /model/{model}/invoke"
    assert f"POST /model/{model}/invoke-with-response-stream" in server.asked
    assert {one.partition("?")[0] for one in server.asked[1:]} <= {
        "GET /inference-profiles",
        f"POST /model/{model}/invoke-with-response-stream",
    }
    for head in server.heads:
        assert "authorization: bearer bedrock-token\r\n" in head.lower()


@holds("On Vertex AI the SDK")
async def test_on_vertex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("google.auth")
    model = "claude-sonnet-4-5@20250929"
    async with recorder() as server:
        environ = {
            "CLOUD_ML_REGION": "europe-west1",
            "ANTHROPIC_VERTEX_PROJECT_ID": "our-project",
            "ANTHROPIC_VERTEX_BASE_URL": f"http://127.0.0.1:{server.port}/v1",
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "account.json"),
        }
        async with google_tokens() as token_uri:
            _service_account(tmp_path / "account.json", token_uri)
            for name, value in environ.items():
                monkeypatch.setenv(name, value)
            access = ApiAccess.from_environ(environ, provider="vertex")
            await diagnosed(access, model)
            await said(tmp_path, access, model=model)
    path = f"POST /v1/projects/our-project/locations/europe-west1/publishers/anthropic/models/{model}"
    assert server.asked[0] == f"{path}:rawPredict"
    assert set(server.asked[1:]) == {f"{path}:streamRawPredict"}
    for head in server.heads:
        assert "authorization: bearer google-token\r\n" in head.lower()


@asynccontextmanager
async def google_tokens() -> AsyncIterator[str]:
    body = json.dumps(
        {"access_token": "google-token", "expires_in": 3600, "token_type": "Bearer"}
    ).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if length := re.search(r"content-length: (\d+)", head, re.I):
            await reader.readexactly(int(length[1]))
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/token"


def _service_account(file: Path, token_uri: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    account = {
        "type": "service_account",
        "project_id": "our-project",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "midwatch@our-project.iam.gserviceaccount.com",
        "token_uri": token_uri,
    }
    file.write_text(json.dumps(account))


# ------------------------------------------------------------------ what they do


@holds("The program repeats a request")
@pytest.mark.parametrize("status", [400, 422])
async def test_a_refused_request_is_repeated(tmp_path: Path, status: int) -> None:
    refused = Error(status, "invalid_request_error", "no such field")
    async with ScriptedMessagesAPI(Rule(refused, tools=True)) as api:
        session = session_in(tmp_path, api)
        with pytest.raises(MidwatchError):
            await collect(session, "Hi.")
        sizes = [round(len(json.dumps(r.body)), -3) for r in api.calls]
    assert len(sizes) == 6 and len(set(sizes)) == 2
    told = session.status()
    assert (told.retries, told.requests) == (0, 6)
    assert (await session.get_results()).requests == 6


@holds("The program asks once more")
async def test_a_model_not_found_is_asked_for_again(tmp_path: Path) -> None:
    async with ScriptedMessagesAPI(Rule(unknown_model(), tools=True)) as api:
        session = session_in(tmp_path, api)
        with pytest.raises(MidwatchError):
            await collect(session, "Hi.")
        assert [call.stream for call in api.calls] == [True, False]
    assert session.status().retries == 0


@holds("A turn that is interrupted")
async def test_half_a_sentence_is_marked(tmp_path: Path) -> None:
    whole, half = "This is whole. ", "This is cut before its end. " * 60
    blocks = [{"type": "text", "text": text} for text in (whole, half)]
    slow = Drip(Answer(blocks=blocks), size=400, interval=0.2)
    async with ScriptedMessagesAPI(Rule(slow, tools=True)) as api:
        session = session_in(tmp_path, api)
        seen: list[Any] = []
        async for event in session.execute("Hi."):
            seen.append(event)
            if isinstance(event, Message) and len(only(seen, Message)) == 1:
                session.interrupt()
    first, *rest = only(seen, Message)
    assert first.text == whole and not first.interrupted
    for cut in rest:
        assert cut.interrupted and half.startswith(cut.text) and cut.text != half
    assert only(seen, TurnResult)[-1].outcome == "interrupted"


class Forgetful(FileTranscripts):
    """Loses its acknowledgement of every second batch after it is written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.batches: list[list[Any]] = []

    async def append(self, key: Any, entries: list[Any]) -> None:
        again = bool(self.batches) and self.batches[-1] == entries
        self.batches.append(entries)
        await super().append(key, entries)
        if not again:
            raise OSError("the acknowledgement is lost")


@holds("After an acknowledgement that was lost")
async def test_a_batch_that_comes_again_is_kept_once(tmp_path: Path) -> None:
    entries, batches = await _kept(tmp_path)
    assert any(one == other for one, other in zip(batches, batches[1:]))
    once = [
        entry
        for number, batch in enumerate(batches)
        for entry in batch
        if number == 0 or batches[number - 1] != batch
    ]
    assert entries == once


@holds("More than a fifth")
async def test_entries_without_a_uuid_are_kept_once(tmp_path: Path) -> None:
    entries, batches = await _kept(tmp_path)
    bare = [entry for entry in entries if "uuid" not in entry]
    assert len(bare) > len(entries) / 5
    sent = [entry for batch in batches for entry in batch if "uuid" not in entry]
    assert len(sent) == 2 * len(bare)


async def _kept(root: Path) -> tuple[list[Any], list[list[Any]]]:
    """Run a session whose store forgets; its transcript, and every batch that it got."""
    store = Forgetful(root / "store")
    tool = Answer("Look.", tool_uses=[ToolUse("Bash", {"command": "true"})])
    async with ScriptedMessagesAPI(Rule([tool, "Done."], tools=True)) as api:
        session = session_in(root, api, transcripts=store)
        await collect(session, "Hi.")
    key = {"project_key": "midwatch", "session_id": conversation_id(session.id)}
    return await store.load(key) or [], store.batches


# ------------------------------------------------------------------ what they cost


async def _costs(root: Path, model: str, tokens: int) -> tuple[float, float, float]:
    """What one request costs: by the program, by the list, and as the session counts it."""
    usage = api_.Usage(input_tokens=tokens, output_tokens=1000)
    answer = Rule(Answer("Fine.", usage=usage), tools=True)
    async with ScriptedMessagesAPI(answer) as api:
        session = session_in(root, api, model=model)
        await collect(session, "Hi.")
    (transcript,) = (root / "session/claude/projects").rglob("*.jsonl")
    states = [e for e in read_entries(transcript) if e.get("type") == "cost-state"]
    listed = cost_usd(model, Usage(tokens, 1000))
    return states[-1]["totalCostUSD"], listed, session.status().cost_usd


@holds("The program and the price list")
@pytest.mark.parametrize(
    "model",
    ["claude-sonnet-4-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-opus-5-5"],
)
async def test_the_price_lists_agree_but_for_one_model(
    tmp_path: Path, model: str
) -> None:
    for tokens in (1000, 250_000):
        root = tmp_path / str(tokens)
        root.mkdir()
        program, listed, counted = await _costs(root, model, tokens)
        assert counted == pytest.approx(max(program, listed))
        if model == "claude-sonnet-4-5" and tokens > 200_000:
            assert listed == pytest.approx(2 * program, rel=0.02)
        else:
            assert listed == pytest.approx(program)


@holds("`claude-haiku-5-5` costs")
async def test_haiku_costs_five_times_as_much(tmp_path: Path) -> None:
    found = []
    for tokens in (100_000, 100_001):
        root = tmp_path / str(tokens)
        root.mkdir()
        found.append(await _costs(root, "claude-haiku-5-5", tokens))
    for below, above in zip(*found):
        assert above == pytest.approx(5 * below, rel=0.001)


@holds("A model that a gateway names")
async def test_a_gateways_name_costs_what_the_model_costs() -> None:
    usage = Usage(1000, 1000)
    for name in (
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "claude-sonnet-4-5@20250929",
        "anthropic/claude-sonnet-4-5",
        "arn:aws:bedrock:us-east-1:1:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    ):
        assert cost_usd(name, usage) == cost_usd("claude-sonnet-4-5", usage), name
    for name in ("us.anthropic.claude-sonnet-5-5-v1:0", "team-fast"):
        counted = api_.Usage(input_tokens=1000, output_tokens=1000)
        async with ScriptedMessagesAPI(Answer(usage=counted, model=name)) as api:
            access = ApiAccess("sk-test", api.base_url)
            reply = await diagnosed(access)
        assert reply.kind is Kind.ANSWERED and reply.model == name
        cost = paid(reply, "answered", Context((), (), datetime.now(UTC))).cost_usd
        assert cost == cost_usd("claude-sonnet-5-5", usage), name


@holds("A refused request costs nothing")
async def test_a_refused_request_costs_nothing(tmp_path: Path) -> None:
    refusals = [bad_request("no such field"), Answer("Fine.")]
    sessions = []
    for name, answers in (("refused", refusals), ("plain", refusals[1:])):
        (tmp_path / name).mkdir()
        async with ScriptedMessagesAPI(Rule(answers, tools=True)) as api:
            session = session_in(tmp_path / name, api)
            await collect(session, "Hi.")
        sessions.append(session.status())
    refused, plain = sessions
    assert refused.cost_usd == plain.cost_usd > 0
    assert (refused.requests, plain.requests) == (2, 1)
