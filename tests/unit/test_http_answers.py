"""Answers are read as curl and browsers read them: heads and chunks, compression, and encodings of text."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midwatch.subjects.content_coding import Decompressor, decode
from midwatch.subjects.http_transport import MAX_HEAD, AnswerReader

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 2\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
BODY = b"\r\nok"
CHUNKS = b"\r\n2\r\nok\r\n0\r\n\r\n"


def read(*pieces: bytes) -> tuple[int, bytes]:
    """Return status and body as h11 reads them after the repair. Raises h11.RemoteProtocolError."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    reader = AnswerReader()
    status, body = 0, b""
    passed_on = [reader.feed(piece) for piece in (*pieces, b"")]
    for data in [*filter(None, passed_on), b""]:
        client.receive_data(data)
        while (event := client.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif not isinstance(event, h11.InformationalResponse):
                return status, body
    raise AssertionError("the answer does not end")


ACCEPTED = {
    "as written": OK + LENGTH + BODY,
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "doubled returns": b"HTTP/1.1 200 OK\r\r\nContent-Length: 2\r\r\n\r\r\nok",
    "space before the colon": OK + b"Server : x\r\nContent-Length : 2\r\n" + BODY,
    "space in a name": OK + b"X Cache: hit\r\n" + LENGTH + BODY,
    "brackets in a name": OK + b"X[0]: a\r\n" + LENGTH + BODY,
    "name beyond ASCII": OK + "X-Größe: 2\r\n".encode() + LENGTH + BODY,
    "no name": OK + b": a\r\n" + LENGTH + BODY,
    "no colon": OK + b"Warning\r\n" + LENGTH + BODY,
    "value in Latin-1": OK + b"X: M\xfcller\r\n" + LENGTH + BODY,
    "controls in a value": OK + b"X: a\x0b\x0c\x01\rb\r\n" + LENGTH + BODY,
    "folded": OK + b"X: a\r\n  b\r\n\tc\r\n" + LENGTH + BODY,
    "folded at the start": OK + b"  a: b\r\n" + LENGTH + BODY,
    "length twice": OK + LENGTH + LENGTH + BODY,
    "length as a list": OK + b"Content-Length: 2, 2\r\n" + BODY,
    "length with a sign": OK + b"Content-Length: +2\r\n" + BODY,
    "length with its unit": OK + b"Content-Length: 2 bytes\r\n" + BODY,
    "length beyond every file": OK + b"Content-Length: " + b"9" * 30 + b"\r\n" + BODY,
    "length and chunks": OK + LENGTH + CHUNKED + CHUNKS,
    "chunked twice": OK + CHUNKED + CHUNKED + CHUNKS,
    "chunked in a list": OK + b"Transfer-Encoding: identity, chunked\r\n" + CHUNKS,
    "transfer as it is": OK + b"Transfer-Encoding: identity\r\n" + LENGTH + BODY,
    "chunks with line feeds": OK + CHUNKED + b"\n2\nok\n0\n\n",
    "chunk with a comment": OK + CHUNKED + b"\r\n002;a=b \r\nok\r\n0;z\r\n\r\n",
    "trailer": OK + CHUNKED + b"\r\n2\r\nok\r\n0\r\nMD5 : x\r\n\r\n",
    "two spaces": b"HTTP/1.1  200  OK\r\n" + LENGTH + BODY,
    "no reason": b"HTTP/1.0 200\r\n" + LENGTH + BODY,
    "odd reason": b"HTTP/1.1 200 \xc4\x0b\x01\r\n" + LENGTH + BODY,
    "small letters": b"http/1.1 200 ok\r\n" + LENGTH + BODY,
    "another version": b"HTTP/2 200\r\n" + LENGTH + BODY,
    "hint before": b"HTTP/1.1 103 Early\nLink : x\n\n" + OK + LENGTH + BODY,
    "until the end": OK + BODY,
    "large head": OK + b"X: " + b"x" * 200_000 + b"\r\n" + LENGTH + BODY,
}


@pytest.mark.parametrize("sent", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_other_clients_read_is_read(sent: bytes) -> None:
    assert read(sent) == (200, b"ok")
    assert read(*(sent[i : i + 1] for i in range(min(len(sent), 400))), sent[400:]) == (
        200,
        b"ok",
    )


@pytest.mark.parametrize(
    "sent",
    [
        b"ICY 200 OK\r\n" + LENGTH + BODY,
        b"HTTP/1.1 2000 OK\r\n" + LENGTH + BODY,
        b"220 mail.example ESMTP\r\n",
        OK + b"X: a\0b\r\n" + LENGTH + BODY,
        OK + LENGTH + b"Content-Length: 3\r\n" + BODY,
        OK + b"Content-Length: -1\r\n" + BODY,
        OK + b"Content-Length: two\r\n" + BODY,
        OK + b"Content-Length: 20\r\n" + BODY,
        OK + CHUNKED + b"\r\n2\r\nok\r\n",
        OK + CHUNKED + b"\r\n2\r\nok!\r\n0\r\n\r\n",
        OK + CHUNKED + b"\r\nok\r\n0\r\n\r\n",
        OK + b"X: " + b"x" * 2 * MAX_HEAD + b"\r\n" + LENGTH + BODY,
    ],
)
def test_what_other_clients_refuse_is_refused(sent: bytes) -> None:
    with pytest.raises(h11.RemoteProtocolError):
        read(*(sent[i : i + 65_536] for i in range(0, len(sent), 65_536)))


def test_a_head_that_the_connection_ends_is_complete() -> None:
    assert read(OK + b"X: y\r\n") == (200, b"")


def test_each_request_has_an_answer_of_its_own() -> None:
    reader = AnswerReader()
    first = reader.feed(OK + CHUNKED + b"\n2\nok\n0\n\n")
    reader.restart()
    assert reader.feed(OK + b"A : b\n\n").startswith(OK + b"A: b\r\n")
    assert first.endswith(b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")


LINES = st.sampled_from(
    [OK, LENGTH, CHUNKED, b"\r\n", b"\n", b"2\r\n", b"ok", b"0\r\n", b"X : y\r\n"]
    + [b" z\r\n", b"HTTP/1.1 100\r\n", b"\r", b":", b"Content-Length: 1,2\r\n", b"\0"]
)


@given(st.lists(LINES | st.binary(max_size=8), max_size=14), st.data())
def test_pieces_make_no_difference_and_nothing_is_raised(
    parts: list[bytes], data: st.DataObject
) -> None:
    sent = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=6).map(sorted))
    whole, split = AnswerReader(), AnswerReader()
    edges = zip([0, *cuts], [*cuts, len(sent)])
    pieces = [piece for start, end in edges if (piece := sent[start:end])]
    expected = whole.feed(sent) + whole.feed(b"") if sent else whole.feed(b"")
    assert b"".join(map(split.feed, [*pieces, b""])) == expected


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"X-[A-Za-z0-9-]{1,8}", fullmatch=True),
            st.from_regex(r"([!-~]{1,6}( [!-~]{1,6})?)?", fullmatch=True),
        ),
        max_size=5,
    ),
    st.binary(max_size=40),
    st.booleans(),
)
def test_what_is_strict_already_stays(
    headers: list[tuple[str, str]], body: bytes, chunked: bool
) -> None:
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.next_event()
    framing = ("Transfer-Encoding", "chunked")
    if not chunked:
        framing = ("Content-Length", str(len(body)))
    sent = server.send(h11.Response(status_code=200, headers=[*headers, framing]))
    sent += server.send(h11.Data(data=body)) or b""
    sent += server.send(h11.EndOfMessage())
    assert read(sent) == (200, body)


# ------------------------------------------------------------------ compression

TEXT = b'{"status": "ok"}' * 50
RAW = zlib.compress(TEXT)[2:-4]


def unpacked(
    codings: str, data: bytes, limit: int = 10_000, step: int = 0
) -> tuple[bytes, Decompressor]:
    decoder = Decompressor(codings, limit)
    step = step or max(len(data), 1)
    pieces = (data[i : i + step] for i in range(0, len(data), step))
    return b"".join(part for piece in pieces for part in decoder.feed(piece)), decoder


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(
    ("codings", "data"),
    [
        ("", TEXT),
        ("identity", TEXT),
        ("utf-8", TEXT),  # no coding; browsers take the body as it is
        ("none", TEXT),
        ("gzip", gzip.compress(TEXT, mtime=0)),
        ("X-GZip", gzip.compress(TEXT, mtime=0)),
        (
            "gzip",
            gzip.compress(TEXT[:100], mtime=0) + gzip.compress(TEXT[100:], mtime=0),
        ),
        ("gzip", gzip.compress(TEXT, mtime=0) + b"\0\0\0padding"),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", RAW),
        ("deflate, gzip", gzip.compress(zlib.compress(TEXT), mtime=0)),
        ("gzip, identity ,gzip", gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0)),
    ],
)
def test_a_compressed_body_is_read(codings: str, data: bytes, step: int) -> None:
    text, decoder = unpacked(codings, data, step=step)
    assert text == TEXT
    assert not (decoder.malformed or decoder.undecoded or decoder.cut)


def test_what_is_cut_off_decompresses_as_far_as_it_goes() -> None:
    packed = gzip.compress(bytes(range(256)) * 20, mtime=0)
    text, decoder = unpacked("gzip", packed[:-30])
    assert text.startswith(bytes(range(200))) and not decoder.malformed
    assert unpacked("gzip", b"")[0] == b""


@pytest.mark.parametrize(
    ("codings", "data", "malformed", "undecoded"),
    [
        ("gzip", TEXT, "is not gzip", ""),
        ("gzip", gzip.compress(TEXT, mtime=0)[:-8] + b"\0" * 8, "is not gzip", ""),
        ("deflate", b"\xff\xffplain", "is not deflate", ""),
        ("br", b"\x0b\x07\x80ok\x03", "", "compressed with br"),
        ("zstd, gzip", gzip.compress(b"(", mtime=0), "", "compressed with zstd"),
        ("gzip," * 6, TEXT, "", "compressed 6 times"),
    ],
)
def test_what_cannot_be_decompressed_has_a_reason(
    codings: str, data: bytes, malformed: str, undecoded: str
) -> None:
    _, decoder = unpacked(codings, data)
    assert malformed in decoder.malformed and bool(malformed) == bool(decoder.malformed)
    assert undecoded in decoder.undecoded and bool(undecoded) == bool(decoder.undecoded)


BOMB = gzip.compress(b"\0" * 10_000_000, mtime=0)


@pytest.mark.parametrize(
    ("codings", "data"),
    [
        ("gzip", BOMB),
        ("gzip, gzip", gzip.compress(BOMB, mtime=0)),
        ("deflate", zlib.compress(b"\0" * 10_000_000)),
        ("gzip", gzip.compress(b"", mtime=0) * 100_000),
        ("gzip, gzip", gzip.compress(gzip.compress(b"", mtime=0) * 100_000, mtime=0)),
    ],
)
def test_a_bomb_costs_neither_memory_nor_time(codings: str, data: bytes) -> None:
    tracemalloc.start()
    try:
        text, decoder = unpacked(codings, data, limit=100_000, step=65_536)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.cut and len(text) < 200_000
    assert peak < 3_000_000


@given(st.binary(max_size=60), st.sampled_from(["gzip", "deflate", "deflate, gzip"]))
def test_any_bytes_are_decompressed_or_have_a_reason(data: bytes, codings: str) -> None:
    unpacked(codings, data)
    unpacked("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + data)


# ------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("data", "content_type", "text"),
    [
        ("über".encode(), "", "über"),
        (b"\xef\xbb\xbf{}", "application/json", "{}"),
        ("{ü}".encode("utf-16"), "", "{ü}"),
        ("{ü}".encode("utf-32"), "text/plain; charset=utf-8", "{ü}"),
        (b"\xfcber", "text/html; charset=ISO-8859-1", "über"),
        (b"\xfcber", 'text/html; Charset="windows-1252"', "über"),
        (b"\xfcber", "text/html", "\ufffdber"),
        (b"ok", "text/html; charset=no-such-thing", "ok"),
        (b"789c", "text/plain; charset=hex", "789c"),
        (b"a\\u0041", "text/plain; charset=unicode_escape", "a\\u0041"),
    ],
)
def test_text_has_the_encoding_that_it_says(
    data: bytes, content_type: str, text: str
) -> None:
    assert decode(data, content_type) == text
