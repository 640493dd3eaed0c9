"""The codec reads and writes what the contract shows, byte for byte, and refuses the rest with two errors."""

import gzip
import json
import random
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.protocol import messages as m
from upwell.protocol.codec import (
    BadSubscription,
    FrameMalformed,
    FrameTooLarge,
    change_frame,
    change_head,
    change_tail,
    decode_body,
    decode_client_frame,
    decode_server_frame,
    encode,
    encode_frame,
    gunzip,
    unpack_client_frame,
)

SEQ = 1738291029381029888
CLIENT_FRAMES = [
    (
        '{"type":"authenticate","method":"jwt","token":"t","protocol":{"serialization":"json","compression":"gzip"}}',
        m.Authenticate("t", "jwt", m.Protocol("json", "gzip")),
    ),
    ('{"type":"authenticate","method":"jwt","token":"t"}', m.Authenticate("t")),
    (
        '{"type":"subscribe","subscription":{"id":"s1","sql":"SELECT id, body FROM chat.messages",'
        '"options":{"batch_size":100,"last_rows":50,"from":1738291029381029888}}}',
        m.Subscribe(
            m.Subscription("s1", "SELECT id, body FROM chat.messages", m.SubscriptionOptions(100, 50, SEQ))
        ),
    ),
    (
        '{"type":"subscribe","subscription":{"id":"s1","sql":"q","options":null}}',
        m.Subscribe(m.Subscription("s1", "q")),
    ),
    (
        '{"type":"subscribe","subscription":{"id":"s1","sql":"q","options":{}}}',
        m.Subscribe(m.Subscription("s1", "q", m.SubscriptionOptions())),
    ),
    (
        '{"type":"next_batch","subscription_id":"s1","last_seq_id":1738291029381029888}',
        m.NextBatch("s1", SEQ),
    ),
    ('{"type":"unsubscribe","subscription_id":"s1"}', m.Unsubscribe("s1")),
    ('{"type":"ping"}', m.Ping()),
]
READY = m.BatchControl(0, has_more=False, status="ready", last_seq_id=None)
SERVER_FRAMES = [
    (
        '{"type":"auth_success","user":"alice","role":"user",'
        '"protocol":{"serialization":"json","compression":"gzip"}}',
        m.AuthSuccess("alice", "user", m.Protocol("json", "gzip")),
    ),
    ('{"type":"auth_error","message":"Invalid credentials"}', m.AuthError("Invalid credentials")),
    (
        '{"type":"subscription_ack","subscription_id":"s1","total_rows":0,'
        '"batch_control":{"batch_num":0,"has_more":false,"status":"ready","last_seq_id":null},'
        '"schema":[{"name":"id","data_type":"BigInt","index":0,"flags":["nn","pk","uq"]},'
        '{"name":"emb","data_type":{"Embedding":3},"index":1},'
        '{"name":"price","data_type":{"Decimal":{"precision":10,"scale":2}},"index":2}]}',
        m.SubscriptionAck(
            "s1",
            0,
            READY,
            [
                m.FieldSchema("id", "BigInt", 0, ("nn", "pk", "uq")),
                m.FieldSchema("emb", {"Embedding": 3}, 1),
                m.FieldSchema("price", {"Decimal": {"precision": 10, "scale": 2}}, 2),
            ],
        ),
    ),
    (
        '{"type":"initial_data_batch","subscription_id":"s1",'
        '"rows":[{"id":"1","body":"hi","_seq":"1738291029381029888","_deleted":false}],'
        '"batch_control":{"batch_num":0,"has_more":true,"status":"loading","last_seq_id":1738291029381029888}}',
        m.InitialDataBatch(
            "s1",
            [{"id": "1", "body": "hi", "_seq": str(SEQ), "_deleted": False}],
            m.BatchControl(0, has_more=True, status="loading", last_seq_id=SEQ),
        ),
    ),
    (
        '{"type":"change","subscription_id":"s1","change_type":"insert","rows":[{"id":"1"}]}',
        m.Change("s1", "insert", [{"id": "1"}]),
    ),
    (
        '{"type":"change","subscription_id":"s1","change_type":"update","rows":[{"id":"1"}],'
        '"old_values":[{"id":"1","body":"x"}]}',
        m.Change("s1", "update", [{"id": "1"}], [{"id": "1", "body": "x"}]),
    ),
    (
        '{"type":"change","subscription_id":"s1","change_type":"delete","old_values":[{"id":"1"}]}',
        m.Change("s1", "delete", msgspec.UNSET, [{"id": "1"}]),
    ),
    (
        '{"type":"error","subscription_id":"s1","code":"NOT_FOUND",'
        '"message":"Not found: Table not found: chat.nope"}',
        m.Error("s1", "NOT_FOUND", "Not found: Table not found: chat.nope"),
    ),
]


@pytest.mark.parametrize(("text", "frame"), CLIENT_FRAMES)
def test_a_client_frame_is_read_as_the_contract_shows_it(text: str, frame: m.ClientFrame) -> None:
    assert decode_client_frame(text) == frame
    assert decode_client_frame(text.encode()) == frame
    assert decode_client_frame(encode(frame)) == frame


@pytest.mark.parametrize(("text", "frame"), SERVER_FRAMES)
def test_a_server_frame_is_written_as_the_contract_shows_it(text: str, frame: m.ServerFrame) -> None:
    assert encode(frame) == text.encode()
    assert decode_server_frame(text) == frame


def test_a_resume_is_written_with_an_integer_and_read_under_both_names_and_as_text() -> None:
    frame = m.Subscribe(m.Subscription("s1", "q", m.SubscriptionOptions(from_seq=SEQ)))
    assert json.loads(encode(frame))["subscription"]["options"] == {"from": SEQ}
    for options in (f'{{"from":{SEQ}}}', f'{{"from_seq_id":{SEQ}}}', f'{{"from":"{SEQ}"}}'):
        text = f'{{"type":"subscribe","subscription":{{"id":"s1","sql":"q","options":{options}}}}}'
        read = decode_client_frame(text)
        assert isinstance(read, m.Subscribe)
        assert read.subscription.options is not None
        assert read.subscription.options.after == SEQ


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"type":"nope"}',
        '{"type":"subscribe"}',
        '{"type":"next_batch","subscription_id":5}',
        '{"type":"subscribe","subscription":{"id":7,"sql":"q"}}',
        '{"type":"subscribe","subscription":{"id":"s","sql":"q","options":{"from":1}',
        b'{"type":"unsubscribe","subscription_id":"\xff"}',
        '{"type":"authenticate","method":"basic","token":"t"}',
    ],
)
def test_what_is_no_frame_is_malformed(text: str | bytes) -> None:
    with pytest.raises(FrameMalformed):
        decode_client_frame(text)


@pytest.mark.parametrize(
    ("rest", "place"),
    [
        ({"sql": "q", "options": {"from": 1 << 63}}, "$.subscription.options.from"),
        ({"sql": "q", "options": {"batch_size": -1}}, "$.subscription.options.batch_size"),
        ({"sql": "q", "options": {"last_rows": "many"}}, "$.subscription.options.last_rows"),
        ({"sql": "q", "options": {"view": 7}}, "$.subscription.options.view"),
        ({"sql": "q", "options": 7}, "$.subscription.options"),
        ({"sql": 7}, "$.subscription.sql"),
        ({}, "$.subscription"),
    ],
)
def test_whose_subscription_it_is_is_known_where_it_says_something_wrong(
    rest: dict[str, object], place: str
) -> None:
    frame = {"type": "subscribe", "subscription": {"id": "s"} | rest}
    text, packed = msgspec.json.encode(frame), msgspec.msgpack.encode(frame)
    for found in (decode_client_frame(text), unpack_client_frame(packed)):
        assert isinstance(found, BadSubscription)
        assert found.subscription_id == "s"
        assert found.reason.endswith(f"- at `{place}`")


@given(st.text() | st.binary())
def test_garbage_raises_nothing_else(data: str | bytes) -> None:
    for decode in (decode_client_frame, decode_server_frame):
        with pytest.raises((FrameMalformed, FrameTooLarge)):
            decode(data)


def test_the_bound_is_in_bytes_and_inclusive() -> None:
    text = '{"type":"unsubscribe","subscription_id":"é"}'
    size = len(text.encode())
    assert decode_client_frame(text, bytes_max=size) == m.Unsubscribe("é")
    with pytest.raises(FrameTooLarge, match=f"maximum {size - 1} bytes"):
        decode_client_frame(text, bytes_max=size - 1)


def test_a_gzipped_server_frame_is_recognised_and_bounded() -> None:
    text = SERVER_FRAMES[3][0].encode()
    packed = gzip.compress(text)
    assert decode_server_frame(packed) == SERVER_FRAMES[3][1]
    assert gunzip(packed, bytes_max=len(text)) == text
    with pytest.raises(FrameTooLarge):
        gunzip(packed, bytes_max=len(text) - 1)
    with pytest.raises(FrameMalformed):
        decode_server_frame(packed[:-9])
    with pytest.raises(FrameMalformed):
        decode_server_frame(b"\x1f\x8bnonsense")


@pytest.mark.parametrize("subscription_id", ["s1", 'quo"te\\ \u2028 é'])
def test_a_change_frame_from_its_tail_equals_the_frame_as_a_whole(subscription_id: str) -> None:
    new, old = {"id": "1", "body": "b"}, {"id": "1", "body": "a"}
    cases = [
        (change_tail("insert", [new]), m.Change(subscription_id, "insert", [new])),
        (change_tail("update", [new], [old]), m.Change(subscription_id, "update", [new], [old])),
        (change_tail("delete", None, [old]), m.Change(subscription_id, "delete", msgspec.UNSET, [old])),
    ]
    for tail, whole in cases:
        assert change_frame(subscription_id, tail) == encode(whole)
    raw = change_tail("insert", [msgspec.Raw(b'{"id":"1","body":"b"}')])
    assert raw == cases[0][0]


@pytest.mark.parametrize("subscription_id", ["s1", "é" * 256])
@pytest.mark.parametrize("serialization", ["json", "msgpack"])
@pytest.mark.parametrize("body", ["b", "words again and " * 60])
def test_a_shared_tail_in_every_form_says_what_the_frame_as_a_whole_says(
    subscription_id: str, serialization: m.Serialization, body: str
) -> None:
    new, old = {"id": "1", "body": body, "none": None}, {"id": "1", "size": 1.5}
    read = json.loads if serialization == "json" else msgspec.msgpack.decode
    for kind, rows, olds in (("insert", [new], None), ("update", [new], [old]), ("delete", None, [old])):
        said = {"type": "change", "subscription_id": subscription_id, "change_type": kind}
        whole = said | {
            name: each for name, each in (("rows", rows), ("old_values", olds)) if each is not None
        }
        tail = change_tail(kind, rows, olds, serialization)
        head = change_head(subscription_id, serialization)
        plain, packed = tail.frame(head), tail.frame(head, gzip=True)
        assert read(plain) == whole
        assert plain.startswith(b"{") is (serialization == "json")
        if len(body) > 1 and rows is not None:
            stream = zlib.decompressobj(wbits=31)
            assert stream.decompress(packed) == plain
            assert (stream.eof, stream.unused_data) == (True, b"")
            assert gzip.decompress(packed) == plain
            assert len(packed) < len(plain)
        else:
            assert packed == plain, "short frames, and what gets no smaller, stay as they are"


def test_a_frame_is_compressed_from_512_bytes_on_if_it_gets_smaller() -> None:
    around = len(encode(m.AuthError("")))
    for size, is_packed in ((511, False), (512, True)):
        frame = m.AuthError("a" * (size - around))
        data = encode_frame(frame, m.Protocol("json", "gzip"))
        assert data.startswith(b"\x1f\x8b") is is_packed
        assert (gzip.decompress(data) if is_packed else data) == encode(frame)
        assert encode_frame(frame, m.Protocol("json", "none")) == encode(frame)
        packed = encode_frame(frame, m.Protocol("msgpack", "none"))
        assert msgspec.msgpack.decode(packed) == {"type": "auth_error", "message": frame.message}


def test_what_gets_no_smaller_is_sent_as_it_is() -> None:
    noise = random.Random(7).randbytes(600)
    head = change_head("s", "msgpack")
    tail = change_tail("insert", [noise], None, "msgpack")
    assert tail.frame(head, gzip=True) == tail.frame(head)
    assert noise in tail.frame(head)


@pytest.mark.parametrize(("text", "frame"), CLIENT_FRAMES)
def test_a_packed_client_frame_says_what_its_json_says(text: str, frame: m.ClientFrame) -> None:
    packed = msgspec.msgpack.encode(json.loads(text))
    assert unpack_client_frame(packed) == frame
    assert unpack_client_frame(gzip.compress(packed)) == frame
    with pytest.raises(FrameTooLarge):
        unpack_client_frame(packed, bytes_max=len(packed) - 1)
    with pytest.raises(FrameTooLarge):
        unpack_client_frame(gzip.compress(b"\0" * 100_000), bytes_max=99_999)
    for malformed in (packed[:-1], b"", b"\xc1", b"\x1f\x8b", b"\x91" * 100_000):
        with pytest.raises(FrameMalformed):
            unpack_client_frame(malformed)


def test_the_answer_of_the_sql_endpoint_is_written_as_the_contract_shows_it() -> None:
    schema = [m.FieldSchema("id", "BigInt", 0, ("nn", "pk", "uq")), m.FieldSchema("title", "Text", 1)]
    rows = m.StatementResult(schema=schema, rows=[["1", "buy milk"]], row_count=1, as_user="alice")
    assert encode(m.SqlResponse("success", [rows], 1.234, None)) == (
        b'{"status":"success","results":[{"schema":[{"name":"id","data_type":"BigInt","index":0,'
        b'"flags":["nn","pk","uq"]},{"name":"title","data_type":"Text","index":1}],'
        b'"rows":[["1","buy milk"]],"row_count":1,"as_user":"alice"}],"took":1.234,"error":null}'
    )
    done = m.StatementResult(message="Inserted 1 row(s)", row_count=1, as_user="alice")
    assert encode(m.SqlResponse("success", [done], 0.4)) == (
        b'{"status":"success","results":[{"row_count":1,"message":"Inserted 1 row(s)","as_user":"alice"}],'
        b'"took":0.4}'
    )
    error = m.ErrorBody("SQL_EXECUTION_ERROR", "Statement 1 failed: no", "CREATE TABLE x")
    assert encode(m.SqlResponse("error", [], 0.4, error)) == (
        b'{"status":"error","results":[],"took":0.4,"error":{"code":"SQL_EXECUTION_ERROR",'
        b'"message":"Statement 1 failed: no","details":"CREATE TABLE x"}}'
    )


def test_a_login_takes_either_name_and_no_unknown_field() -> None:
    assert decode_body(b'{"user":"root","password":"p"}', m.LoginRequest).name == "root"
    assert decode_body(b'{"username":"root","password":"p"}', m.LoginRequest).name == "root"
    for body in (b'{"user":"root","password":"p","x":1}', b'{"user":"root"}', b'{"user":"%s","password":""}'):
        with pytest.raises(FrameMalformed):
            decode_body(body.replace(b"%s", b"x" * 129), m.LoginRequest)


def test_a_sql_request_ignores_unknown_fields() -> None:
    request = decode_body(b'{"sql":"SELECT 1","params":[42,"x",null,true,1.5],"x":1}', m.SqlRequest)
    assert request == m.SqlRequest("SELECT 1", [42, "x", None, True, 1.5], None)
