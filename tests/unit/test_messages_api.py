"""The scripted Messages API under the real Anthropic SDK."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import h11
import httpx2
import pytest
from anthropic import AsyncAnthropic
from pydantic import BaseModel, Field, ValidationError

from midwatch.diagnosis_schema import DiagnosisOutput
from midwatch.errors import SettingsError
from midwatch.testing import messages_api as kit
from midwatch.testing.messages_api import Answer, Hold, Rule, ScriptedMessagesAPI
from midwatch.testing.messages_script_file import FAULTS, read_script
from midwatch.testing.schema_instance import smallest_instance

from ..waiting import PATIENCE

pytestmark = pytest.mark.integration

KEY = "sk-ant-test-0123456789"
ASK: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "What is wrong with orders-db?"}],
}
MODULE = [sys.executable, "-m", "midwatch.testing.messages_api"]


class Verdict(BaseModel):
    cause: str
    certain: bool


@asynccontextmanager
async def talking(
    *rules: Any, timeout: float = PATIENCE, **options: Any
) -> AsyncIterator[tuple[ScriptedMessagesAPI, AsyncAnthropic]]:
    async with ScriptedMessagesAPI(*rules, **options) as api:
        async with AsyncAnthropic(
            api_key=KEY, base_url=api.base_url, max_retries=0, timeout=timeout
        ) as client:
            yield api, client


async def streamed(client: AsyncAnthropic, **more: Any) -> Any:
    async with client.messages.stream(**{**ASK, **more}) as stream:
        return await stream.get_final_message()


async def test_structured_output_round_trip() -> None:
    verdict = Verdict(cause="an idle transaction", certain=True)
    usage = kit.Usage(900, 80, cache_read_input_tokens=700)
    answer = Answer(structured=verdict, usage=usage, id="msg_1", model="claude-x")
    async with talking(Rule(answer, structured=True)) as (api, client):
        message = await client.beta.messages.parse(**ASK, output_format=Verdict)
        raw = await client.beta.messages.with_raw_response.parse(
            **ASK, output_format=Verdict
        )
        body = json.loads(await raw.text())
    assert message.parsed_output == verdict
    assert (message.id, message.model) == ("msg_1", "claude-x")
    assert message.usage.cache_read_input_tokens == 700
    assert message.usage.output_tokens == 80
    assert body["stop_reason"] == "end_turn"
    schema = api.calls[0].output_schema
    assert schema and set(schema["properties"]) == {"cause", "certain"}


async def test_default_answer_fits_the_schema_asked_for() -> None:
    async with talking() as (_, client):
        parsed = await client.beta.messages.parse(**ASK, output_format=DiagnosisOutput)
        plain = await client.messages.create(**ASK)
    assert isinstance(parsed.parsed_output, DiagnosisOutput)
    assert plain.content[0].type == "text" and plain.content[0].text


class Node(BaseModel):
    name: str = Field(min_length=12, max_length=14)
    size: int = Field(ge=7, multiple_of=5)
    share: float = Field(gt=0, lt=1, multiple_of=0.25)
    children: list[Node] = Field(min_length=0)
    pair: list[int] = Field(min_length=2)
    parent: Node | None


def test_smallest_instance_is_valid_and_ends() -> None:
    built = smallest_instance(Node.model_json_schema())
    assert Node.model_validate(built).size == 10
    endless = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    with pytest.raises(ValueError, match="infinite nesting"):
        smallest_instance(endless)


async def test_stream_of_text_thinking_and_tool_use() -> None:
    tool = kit.ToolUse("Bash", {"command": "ls -l " + "x" * 100, "n": [1, "ü"]})
    long_text = "Grüße, " * 30
    answer = Answer(
        long_text, thinking="let me see", tool_uses=[tool], usage=kit.Usage(7, 9)
    )
    async with talking(answer) as (_, client):
        message = await streamed(client)
        same = await client.messages.create(**ASK)
        events = [event async for event in await client.messages.create(**ASK, stream=True)]  # fmt: skip
    thinking, text, use = message.content
    assert thinking.thinking == "let me see" and thinking.signature
    assert text.text == long_text
    assert (use.name, use.input) == ("Bash", dict(tool.input))
    assert message.stop_reason == same.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 9)
    assert [block.type for block in same.content] == ["thinking", "text", "tool_use"]
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert kinds.count("content_block_delta") > 5


async def test_first_rule_that_fits_answers_and_the_last_answer_repeats() -> None:
    async with talking(
        Rule("opus", model="claude-opus"),
        Rule(["one", Answer("two")], contains="orders-db"),
        Rule("log", matches=r"ERROR.*full"),
        Rule("tools", tools=True),
        Rule(lambda request: request.system, when=lambda request: bool(request.system)),
    ) as (api, client):

        async def ask(**more: Any) -> str:
            message = await client.messages.create(**{**ASK, **more})
            return "".join(block.text for block in message.content)

        said = [await ask(), await ask(), await ask(), await ask(model="claude-opus")]
        result = {"type": "tool_result", "tool_use_id": "t", "content": "ERROR:\nfull"}
        other = [{"role": "user", "content": [result]}]
        said.append(await ask(messages=other))
        hello = [{"role": "user", "content": "hello"}]
        tool = {"name": "Bash", "input_schema": {"type": "object"}}
        said.append(await ask(messages=hello, tools=[tool]))
        said.append(await ask(messages=hello, system="be brief"))
        api.script("anew")
        said.append(await ask())
    assert said == ["one", "two", "two", "opus", "log", "tools", "be brief", "anew"]


@pytest.mark.parametrize(
    ("fault", "status", "kind", "error"),
    [
        (kit.rate_limited(3), 429, "rate_limit_error", anthropic.RateLimitError),
        (kit.overloaded(), 529, "overloaded_error", anthropic.OverloadedError),
        (kit.server_error(), 500, "api_error", anthropic.InternalServerError),
        (kit.server_error(503), 503, "api_error", anthropic.ServiceUnavailableError),
        (
            kit.unauthorized(),
            401,
            "authentication_error",
            anthropic.AuthenticationError,
        ),
        (kit.forbidden(), 403, "permission_error", anthropic.PermissionDeniedError),
        (kit.unknown_model(), 404, "not_found_error", anthropic.NotFoundError),
        (
            kit.request_too_large(),
            413,
            "request_too_large",
            anthropic.ContentTooLargeError,
        ),
        (
            kit.prompt_too_long(),
            400,
            "invalid_request_error",
            anthropic.BadRequestError,
        ),
    ],
)
async def test_errors_of_the_api(
    fault: kit.Error, status: int, kind: str, error: type[anthropic.APIStatusError]
) -> None:
    async with talking(fault) as (_, client):
        with pytest.raises(error) as caught:
            await client.messages.create(**ASK)
        with pytest.raises(error):
            await streamed(client)
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.request_id


async def test_rate_limit_says_when_and_why() -> None:
    async with talking([kit.rate_limited(2.5), kit.spend_limit_reached()]) as (
        _,
        client,
    ):
        with pytest.raises(anthropic.RateLimitError) as first:
            await client.messages.create(**ASK)
        with pytest.raises(anthropic.RateLimitError) as second:
            await client.messages.create(**ASK)
    assert first.value.response.headers["retry-after"] == "2.5"
    assert first.value.error_code is None
    assert "retry-after" not in second.value.response.headers
    assert second.value.error_code == "enforced_spend_limit_reached"


async def test_bodies_that_are_no_message() -> None:
    async with talking(
        [kit.Truncated(), kit.empty_body(), kit.html_page(), kit.Raw(200, b"[1]")]
    ) as (_, client):
        with pytest.raises(json.JSONDecodeError):
            await client.messages.create(**ASK)
        with pytest.raises(json.JSONDecodeError):
            await client.messages.create(**ASK)
        page: object = await client.messages.create(**ASK)
        assert isinstance(page, str) and "Sign in" in page
        assert not isinstance(await client.messages.create(**ASK), str)


async def test_connections_that_break() -> None:
    async with talking(
        [kit.Reset(), kit.Cut(), kit.Cut(), kit.Cut(reset=True), kit.Truncated()]
    ) as (api, client):
        with pytest.raises(anthropic.APIConnectionError) as caught:
            await client.messages.create(**ASK)
        assert not isinstance(caught.value, anthropic.APITimeoutError)
        with pytest.raises(anthropic.APIConnectionError):
            await client.messages.create(**ASK)
        with pytest.raises(httpx2.RemoteProtocolError):
            await streamed(client)
        # The reset may overtake the head, which the SDK translates, or only the body.
        with pytest.raises((httpx2.ReadError, anthropic.APIConnectionError)):
            await streamed(client)
        # A stream that ends early but cleanly raises nothing: only the stop reason tells.
        assert (await streamed(client)).stop_reason is None
        requests = await api.wait_for_requests(5, answered=True)
    assert [request.delivery for request in requests] == ["broken"] * 4 + ["complete"]


async def test_streams_that_go_wrong() -> None:
    async with talking([kit.StreamError(), kit.Garbled()]) as (_, client):
        with pytest.raises(anthropic.APIStatusError) as caught:
            await streamed(client)
        assert (caught.value.status_code, caught.value.type) == (
            200,
            "overloaded_error",
        )
        with pytest.raises(json.JSONDecodeError):
            await streamed(client)


@pytest.mark.parametrize("after_head", [False, True])
async def test_hang_times_out_and_counts_as_broken(after_head: bool) -> None:
    async with talking(kit.Hang(after_head), timeout=0.2) as (api, client):
        with pytest.raises(anthropic.APITimeoutError):
            await client.messages.create(**ASK)
        [request] = await api.wait_for_requests(1, answered=True)
    assert request.delivery == "broken"


async def test_drip_and_pings_outlast_the_timeout_per_read() -> None:
    drip = kit.Drip(Answer("slow"), size=6, interval=0.05)
    async with talking([drip, kit.Pings(0.02)], timeout=1.5) as (_, client):
        started = asyncio.get_running_loop().time()
        message = await client.messages.create(**ASK)
        assert message.content[0].type == "text" and message.content[0].text == "slow"
        assert asyncio.get_running_loop().time() - started > 1.5
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await streamed(client)


async def test_answers_that_stop_early_are_ordinary_messages() -> None:
    whole = Answer(structured={"cause": "a lock", "certain": True})
    async with talking(
        [
            kit.refusal(),
            kit.refusal("I cannot help with that."),
            kit.cut_by_max_tokens(whole),
            kit.context_window_exceeded(),
            Answer(stop_reason="pause_turn"),
        ]
    ) as (_, client):
        silent = await client.messages.create(**ASK)
        spoken = await streamed(client)
        cut = await client.messages.create(**ASK)
        full = await client.messages.create(**ASK)
        paused = await client.messages.create(**ASK)
    assert (silent.stop_reason, silent.content) == ("refusal", [])
    assert spoken.stop_reason == "refusal" and spoken.content[0].text
    assert cut.stop_reason == "max_tokens"
    assert cut.content[0].type == "text" and cut.content[0].text.startswith('{"cause"')
    assert full.stop_reason == "model_context_window_exceeded"
    assert paused.stop_reason == "pause_turn"


async def test_parse_hides_a_cut_answer_behind_a_validation_error() -> None:
    async with talking(kit.cut_by_max_tokens()) as (_, client):
        with pytest.raises(ValidationError):
            await client.beta.messages.parse(**ASK, output_format=Verdict)


async def test_hold_lets_things_happen_during_the_call() -> None:
    hold = Hold(Answer("at last"))
    async with talking(hold) as (api, client):
        call = asyncio.create_task(client.messages.create(**ASK))
        await hold.arrived()
        for _ in range(3):  # round trips in which an open gate would let the call end
            await client.models.retrieve("claude-x")
        assert api.calls[0].delivery == "pending" and not call.done()
        hold.release()
        message = await call
        later = await client.messages.create(**ASK)
        with pytest.raises(TimeoutError, match="2 of 3 requests reached the hold"):
            await hold.arrived(3, timeout=0.01)
    assert message.content == later.content


async def test_record_keeps_the_request_and_not_the_key() -> None:
    async with talking() as (api, client):
        await client.messages.create(**ASK, system=[{"type": "text", "text": "Be brief."}])  # fmt: skip
        [request] = await api.wait_for_requests(1, answered=True)
        with pytest.raises(TimeoutError, match="1 of 2 requests came"):
            await api.wait_for_requests(2, timeout=0.01)
    assert request.number == 1 and request.delivered and request.is_call
    assert request.body["messages"] == ASK["messages"]
    assert request.system == "Be brief."
    assert request.prompt == "Be brief.\nWhat is wrong with orders-db?"
    assert request.received_at.tzinfo is not None
    assert request.key == kit.fingerprint(KEY) != kit.fingerprint(KEY + "x")
    assert request.key.endswith("…6789") and KEY not in repr(request)


async def test_other_endpoints_and_bad_requests_as_the_api_has_them() -> None:
    async with talking("never asked") as (api, client):
        count = await client.messages.count_tokens(
            model=ASK["model"], messages=ASK["messages"]
        )
        assert count.input_tokens > 0
        assert (await client.models.retrieve("claude-x")).id == "claude-x"
        with pytest.raises(anthropic.BadRequestError, match="at least one message"):
            await client.messages.create(**{**ASK, "messages": []})
        assert [request.is_call for request in api.requests] == [False, False, True]
    with ScriptedMessagesAPI(max_body=2000) as api, httpx2.Client() as http:
        url = f"{api.base_url}/v1/messages?beta=true"
        key = {"x-api-key": KEY}
        assert http.head(api.base_url).status_code == 200
        assert http.get(f"{api.base_url}/favicon.ico").status_code == 404
        assert http.post(url, json=ASK).status_code == 401
        assert http.post(url, headers=key, content=b"{").status_code == 400
        assert http.post(url, headers=key, content=b"[" * 2000).status_code == 400
        large = http.post(url, headers=key, content=b"x" * 2001)
        assert large.json()["error"]["type"] == "request_too_large"
        pieces = http.post(url, headers=key, content=iter([b"x" * 1500] * 2))
        assert pieces.status_code == 413
        endless = http.post(url, headers=key, content=iter([b"x" * 1500] * 50))
        assert endless.status_code == 413
        chunked = http.post(url, headers=key, content=iter([json.dumps(ASK).encode()]))
        assert chunked.status_code == 200 and api.requests[-1].query == "beta=true"
        wide = http.get(api.base_url, headers={"x-wide": "x" * 70_000})
        assert wide.status_code == 431
        with socket.create_connection(("127.0.0.1", httpx2.URL(url).port)) as sock:
            sock.sendall(b"nonsense\r\n\r\n" + b"x" * 20_000_000)
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
        with socket.create_connection(("127.0.0.1", httpx2.URL(url).port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET /next HTTP/1.0\r\n\r\n")
            both = b"".join(iter(lambda: sock.recv(4096), b""))
        assert both.count(b"HTTP/1.1 ") == 2 and api.requests[-1].path == "/next"


def test_responses_that_are_not_as_they_announce_come_as_they_are() -> None:
    def got(*answers: kit.Raw, end: bytes = b"\r\n\r\nabc") -> bytes:
        """What comes for a request per answer; the connection stays open meanwhile."""
        with ScriptedMessagesAPI(Rule([*answers], path="/", method="GET")) as api:
            port = httpx2.URL(api.base_url).port or 0
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * len(answers))
                data = b""
                while not data.endswith(end):
                    piece = sock.recv(4096)
                    assert piece, data
                    data += piece
        return data.lower()

    long = got(kit.Raw(200, b"abc", headers={"content-length": "10"}))
    assert long.count(b"content-length") == 1 and b"content-length: 10" in long
    short = got(kit.Raw(200, b"abc", headers={"Content-Length": "1"}))
    assert short.count(b"content-length") == 1 and b"content-length: 1\r" in short
    chunked = got(kit.Raw(200, b"abc", headers={"transfer-encoding": "chunked"}))
    assert b"transfer-encoding: chunked" in chunked and b"length" not in chunked
    assert got(kit.Raw(204, b"abc")).startswith(b"http/1.1 204 no content")
    right = {"Content-Length": "3", "x-a": "b"}
    raws = kit.Raw(204), kit.Raw(200, b"abc", headers=right), kit.Raw(299, b"xyz")
    several = got(*raws, end=b"\r\n\r\nxyz")
    assert several.startswith(b"http/1.1 204") and b"x-a: b" in several
    assert several.count(b"content-length: 3") == 2
    assert b"http/1.1 299 scripted\r" in several


async def test_a_response_that_http_does_not_have_is_the_scripts_fault() -> None:
    with pytest.raises(h11.LocalProtocolError, match="Illegal header"):
        async with talking(kit.Raw(headers={"x": "a\r\nb: c"})) as (_, client):
            with pytest.raises(anthropic.InternalServerError, match="Illegal header"):
                await client.messages.create(**ASK)


async def test_failing_function_of_a_script_answers_500_and_is_raised() -> None:
    def broken(request: kit.Request) -> Answer:
        raise LookupError("no such answer")

    with pytest.raises(LookupError, match="no such answer"):
        async with talking(broken) as (_, client):
            with pytest.raises(anthropic.InternalServerError, match="no such answer"):
                await client.messages.create(**ASK)


async def test_functions_may_be_asynchronous_and_rules_need_answers() -> None:
    async def answer(request: kit.Request) -> str:
        await asyncio.sleep(0)
        return f"number {request.number}"

    async with talking(answer) as (_, client):
        message = await client.messages.create(**ASK)
    assert message.content[0].type == "text" and message.content[0].text == "number 1"
    with pytest.raises(ValueError, match="at least one answer"):
        ScriptedMessagesAPI([])


def test_stop_is_prompt_and_a_new_start_is_the_end_of_an_outage() -> None:
    api = ScriptedMessagesAPI(kit.Hang())
    options: Any = {"api_key": KEY, "max_retries": 0, "timeout": 30}
    caught: list[BaseException] = []

    def call() -> None:
        with anthropic.Anthropic(base_url=api.base_url, **options) as client:
            try:
                client.messages.create(**ASK)
            except anthropic.APIConnectionError as error:
                caught.append(error)

    with api:
        caller = threading.Thread(target=call)
        caller.start()
        api.wait_for_requests_sync(1)
    caller.join(PATIENCE)
    assert len(caught) == 1 and "scripted" not in str(threading.enumerate())
    call()
    assert len(caught) == 2, "nobody listens during the outage"
    address = api.base_url
    api.script("back")
    with api:
        call()
        with pytest.raises(OSError):
            ScriptedMessagesAPI(port=httpx2.URL(address).port or 0).start()
    assert len(caught) == 2 and api.base_url == address
    assert [request.delivery for request in api.calls] == ["broken", "complete"]


async def test_large_and_hostile_text_comes_back_unchanged() -> None:
    hostile = "\x1b[2J\0 ' ü 日本\U0001f600 \u2028 event: ping\ndata: {}\n\n" * 20_000
    async with talking(lambda request: request.prompt) as (api, client):
        asked = {**ASK, "messages": [{"role": "user", "content": hostile}]}
        whole = await client.messages.create(**asked)
        pieces = await streamed(client, **asked)
        lone = json.dumps({**ASK, "messages": [{"role": "user", "content": "\ud800"}]})
        async with httpx2.AsyncClient() as http:
            url = f"{api.base_url}/v1/messages"
            said = await http.post(url, content=lone, headers={"x-api-key": KEY})
    assert whole.content[0].type == "text" and whole.content[0].text == hostile
    assert pieces.content[0].text == hostile
    assert said.json()["content"][0]["text"] == "\ud800"


async def test_many_clients_at_once() -> None:
    async with talking(lambda request: request.prompt) as (api, client):

        async def ask(number: int) -> str:
            asked = [{"role": "user", "content": f"n{number}"}]
            message = await client.messages.create(**{**ASK, "messages": asked})
            return message.content[0].text

        said = await asyncio.gather(*(ask(number) for number in range(40)))
    assert said == [f"n{number}" for number in range(40)]
    assert [request.number for request in api.requests] == list(range(1, 41))


def test_importing_it_does_not_import_the_sdk() -> None:
    code = (
        "import sys, midwatch.testing.messages_api; print('anthropic' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "False", ran.stderr


CALLER = """
import sys, urllib.request
request = urllib.request.Request(
    sys.argv[1] + "/v1/messages",
    data=sys.argv[2].encode(),
    headers={"x-api-key": "sk-ant-test", "content-type": "application/json"},
)
print(urllib.request.urlopen(request).read().decode())
"""


def test_process_counts_the_calls_of_a_killed_client(tmp_path: Path) -> None:
    script, record = tmp_path / "script.json", tmp_path / "record.jsonl"
    held = {"fault": "hold", "name": "gate", "then": "for nobody"}
    script.write_text(json.dumps({"rules": [{"answers": [held, "second"]}]}))
    serve = [*MODULE, "--script", str(script), "--record", str(record)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            url = server.stdout.readline().strip()
            call = [sys.executable, "-c", CALLER, url, json.dumps(ASK)]
            with subprocess.Popen(call) as client:
                _wait_for_lines(record, 1)
                client.kill()
            assert client.returncode == -signal.SIGKILL
            released = httpx2.post(f"{url}/holds/gate/release")
            assert released.status_code == 200
            assert httpx2.post(f"{url}/holds/gale/release").status_code == 404
            again = subprocess.run(call, capture_output=True, text=True, check=True)
        finally:
            server.terminate()
        assert server.wait(PATIENCE) == 0
    assert json.loads(again.stdout)["content"][0]["text"] == "second"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    calls = [line for line in lines if line["path"] == "/v1/messages"]
    assert [call["number"] for call in calls] == [1, 4]
    assert calls[0]["body"] == ASK and "sk-ant-test" not in record.read_text()


def _wait_for_lines(path: Path, count: int) -> None:
    for _ in range(1000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{path.name} did not get {count} lines")


@pytest.mark.parametrize("missing", [True, False])
def test_process_refuses_a_bad_script_with_one_line(
    tmp_path: Path, missing: bool
) -> None:
    script = tmp_path / "script.json"
    if not missing:
        script.write_text('{"rules": [{"answer": {"fault": "meteor"}}]}')
    ran = subprocess.run(
        [*MODULE, "--script", str(script)], capture_output=True, text=True
    )
    assert ran.returncode == 2 and ran.stdout == ""
    [line] = ran.stderr.splitlines()
    expected = "No such file" if missing else "rules[0].answer: there is no fault"
    assert expected in line


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ([], "[] is not valid; give an object"),
        ({"rule": []}, "rule: "),
        ({"rules": [{}]}, "rules[0]: give either"),
        ({"rules": [{"answers": []}]}, "rules[0]: a rule needs"),
        ({"rules": [{"answer": 3}]}, "rules[0].answer: "),
        ({"rules": [{"answer": {"txt": "a"}}]}, "rules[0].answer.txt: unknown field"),
        (
            {"rules": [{"answer": "a", "tools": 3}]},
            "rules[0].tools: 3 is not valid; give true or false",
        ),
        ({"default": {"tool_uses": [{}]}}, "default.tool_uses[0].name: is missing"),
        ({"default": {"tool_uses": 3}}, "3 is not valid; give a list"),
        ({"rules": [{"answer": "a", "matches": "("}]}, "rules[0].matches: "),
        (
            {"rules": [{"answers": ["a", {"fault": "drip", "interval": "x"}]}]},
            'rules[0].answers[1].interval: "x" is not valid; give a number',
        ),
        (
            {"default": {"fault": "delay", "seconds": 1, "then": {"fault": 1}}},
            "default.then: there is no fault 1",
        ),
        ({"default": {"fault": "cut", "answer": {"fault": "hang"}}}, "default.answer"),
        ({"default": {"fault": "hold"}}, "default: a hold needs"),
    ],
)
def test_script_data_that_is_wrong_names_its_place(data: object, where: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_script(data)
    assert where in caught.value.message


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        ({"rule": []}, "rules, default"),
        ({"rules": [{"answr": "a"}]}, "answer, answers, model"),
        ({"default": {"txt": "a"}}, "fault, text, structured"),
        ({"default": {"usage": {"x": 1}}}, "input_tokens, output_tokens"),
        ({"default": {"tool_uses": [{"nam": "Bash"}]}}, "name, input, id"),
        ({"default": {"fault": "unknown_model", "modl": "m"}}, "model"),
        ({"default": {"fault": "hold", "name": "a", "x": 1}}, "fault, name, then"),
    ],
)
def test_an_unknown_field_of_a_script_gets_the_known_ones(
    data: object, fields: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read_script(data)
    assert f"the fields are: {fields}" in caught.value.hint


def test_script_data_becomes_the_same_values_as_code() -> None:
    usage = {"output_tokens": 3}
    script = read_script(
        {
            "rules": [
                {
                    "model": "m",
                    "answers": [
                        {"fault": "rate_limited", "retry_after": 2},
                        {"tool_uses": [{"name": "Bash"}], "usage": usage},
                        {"fault": "stream_error", "error": {"fault": "unauthorized"}},
                        {"fault": "raw", "body": "<p>", "content_type": "text/html"},
                        {"fault": "delay", "seconds": 1, "then": {"fault": "reset"}},
                    ],
                }
            ],
            "default": {"fault": "cut", "answer": "half", "keep": 0.25},
        }
    )
    assert script.default == kit.Cut(Answer("half"), 0.25)
    [rule] = script.rules
    answer = Answer(tool_uses=[kit.ToolUse("Bash")], usage=kit.Usage(output_tokens=3))
    assert rule == Rule(
        [
            kit.rate_limited(2),
            answer,
            kit.StreamError(kit.unauthorized()),
            kit.Raw(200, b"<p>", "text/html"),
            kit.Delay(1, kit.Reset()),
        ],
        model="m",
    )


def test_documentation_has_every_fault_and_an_example_that_loads() -> None:
    assert kit.__doc__
    assert [name for name in FAULTS if f"`{name}`" not in kit.__doc__] == []
    shown = kit.__doc__.split("The script file::")[1].split("\n- A rule")[0]
    assert set(read_script(json.loads(shown)).holds) == {"gate"}
