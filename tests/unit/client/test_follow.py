"""The live core, driven by hand: which steps it asks for, and what it does when one fails."""

import json
from typing import Any

import pytest

from upwell.client.core import Account, HttpAnswer, HttpRequest
from upwell.client.failures import (
    AuthenticationFailed,
    ConnectionLost,
    LiveError,
    ProtocolViolation,
    ServerError,
)
from upwell.client.follow import Follow, Patience
from upwell.client.steps import (
    Anew,
    Answered,
    Deliver,
    Open,
    Pause,
    Probe,
    Receive,
    Send,
    SnapshotDone,
    Step,
    Subscribed,
    Walk,
)

SIGNED_IN = '{"type":"auth_success","user":"a","role":"user","protocol":{}}'
REFUSED = '{"type":"auth_error","message":"Invalid credentials"}'
SCHEMA = [{"name": "id", "data_type": "BigInt", "index": 0, "flags": ["pk"]}]
LOGIN = {
    "user": {"id": "a", "role": "user", "created_at": "", "updated_at": ""},
    "admin_ui_access": False,
    "expires_at": "",
}


def _control(more: bool = False, last: int | None = None) -> dict[str, Any]:
    return {"batch_num": 0, "has_more": more, "status": "loading" if more else "ready", "last_seq_id": last}


def _ack() -> str:
    frame = {"type": "subscription_ack", "total_rows": 0, "batch_control": _control(), "schema": SCHEMA}
    return json.dumps({**frame, "subscription_id": "live"})


def _batch(*seqs: int, more: bool = False) -> str:
    rows = [{"id": str(seq), "_seq": str(seq)} for seq in seqs]
    control = _control(more, seqs[-1] if seqs else None)
    frame = {"type": "initial_data_batch", "subscription_id": "live", "rows": rows, "batch_control": control}
    return json.dumps(frame)


def _change(kind: str, seq: int, **values: Any) -> str:
    row = {"id": "1", "_seq": str(seq), **values}
    frame = {"type": "change", "subscription_id": "live", "change_type": kind}
    return json.dumps({**frame, "old_values" if kind == "delete" else "rows": [row]})


def _walk(**options: Any) -> tuple[Follow, Walk]:
    account = options.pop("account", None) or Account("http://h:1", token="t")
    follow = Follow(account, "SELECT id FROM a.b", chance=lambda: 0.0, **options)
    return follow, Walk(follow.steps())


def _subscribed(walk: Walk) -> dict[str, Any]:
    """Walk from Open to Subscribed; return the options that were sent."""
    assert isinstance(walk.step(), Open)
    walk.done(None)
    assert walk.step() == Receive(5.0)
    walk.done(SIGNED_IN)
    sent = walk.step()
    assert isinstance(sent, Send)
    walk.done(None)
    assert walk.step() == Receive(5.0)
    walk.done(_ack())
    assert walk.step() == Subscribed()
    walk.take()
    options: dict[str, Any] = json.loads(sent.text)["subscription"]["options"]
    return options


def _delivered(walk: Walk, frame: str) -> list[tuple[str, int]]:
    """Answer the current Receive with a frame; return what comes of it until the next Receive."""
    assert isinstance(walk.step(), Receive)
    walk.done(frame)
    found = []
    while not isinstance(step := walk.step(), Receive):
        if isinstance(step, Deliver):
            found.append((step.change.kind, step.change.seq))
            walk.take()
        elif step == SnapshotDone():
            found.append(("done", 0))
            walk.take()
        else:
            assert isinstance(step, Send), step
            found.append(("send", json.loads(step.text)["last_seq_id"]))
            walk.done(None)
    return found


def test_it_signs_in_by_header_subscribes_and_asks_for_each_further_batch() -> None:
    follow, walk = _walk(batch_size=2)
    assert walk.step() == Open(
        "ws://h:1/v1/ws?compress=false", {"Authorization": "Bearer t"}, '{"type":"ping"}', 4.0
    )
    assert _subscribed(walk) == {"batch_size": 2}
    assert _delivered(walk, _batch(5, 6, more=True)) == [("send", 6), ("snapshot", 5), ("snapshot", 6)]
    assert not follow.snapshot_complete
    assert _delivered(walk, _batch(7)) == [("snapshot", 7), ("done", 0)]
    assert follow.snapshot_complete
    assert _delivered(walk, _change("insert", 8)) == [("insert", 8)]
    assert _delivered(walk, _change("delete", 9)) == [("delete", 9)]
    assert follow.progress.cursor == 9


def test_the_cursor_covers_only_what_was_taken() -> None:
    follow, walk = _walk()
    _subscribed(walk)
    walk.step()
    walk.done(_batch(5, 6))
    assert isinstance(walk.step(), Deliver)
    assert follow.progress.cursor == 5
    walk.take()
    assert follow.progress.cursor == 5
    walk.step()
    assert follow.progress.cursor == 6


def test_after_a_lost_connection_it_pauses_and_resumes_from_the_cursor_without_repeating() -> None:
    _, walk = _walk(last_rows=10)
    assert _subscribed(walk) == {"batch_size": 1000, "last_rows": 10}
    _delivered(walk, _batch(5, 6))
    walk.failed(ConnectionLost("cut"))
    assert walk.step() == Pause(0.05)
    walk.done(None)
    assert _subscribed(walk) == {"batch_size": 1000, "from": 6}
    assert _delivered(walk, _batch(6, 7)) == [("snapshot", 7), ("done", 0)]
    assert _delivered(walk, _change("delete", 8)) == [("delete", 8)]
    assert _delivered(walk, _change("insert", 8)) == []


def test_pauses_double_up_to_a_bound_and_jitter_shortens_them_by_at_most_half() -> None:
    patience = Patience(backoff_first_s=1.0, backoff_max_s=5.0)
    assert [patience.backoff_s(n, 1.0) for n in (1, 2, 3, 4, 5000)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert [patience.backoff_s(n, 0.0) for n in (1, 5000)] == [0.5, 2.5]


def test_it_gives_up_after_the_allowed_failures_in_a_row() -> None:
    _, walk = _walk(patience=Patience(reconnects_max=3))
    _subscribed(walk)
    _delivered(walk, _batch(5))
    walk.failed(ConnectionLost("1"))
    for number in ("2", "3"):
        assert isinstance(walk.step(), Pause)
        walk.done(None)
        assert isinstance(walk.step(), Open)
        walk.failed(ConnectionLost(number))
    assert isinstance(walk.step(), Pause)
    walk.done(None)
    with pytest.raises(ConnectionLost, match="4"):
        walk.failed(ConnectionLost("4"))


def test_a_server_that_accepts_and_fails_again_and_again_counts_as_failing() -> None:
    _, walk = _walk(patience=Patience(reconnects_max=1))
    _subscribed(walk)
    _delivered(walk, _batch(5))
    walk.failed(ConnectionLost("1"))
    assert isinstance(walk.step(), Pause)
    walk.done(None)
    _subscribed(walk)
    assert isinstance(walk.step(), Receive)
    with pytest.raises(ConnectionLost, match="2"):
        walk.failed(ConnectionLost("2"))


def test_a_server_that_was_never_reached_is_an_error_at_once() -> None:
    _, walk = _walk()
    walk.step()
    with pytest.raises(ConnectionLost, match="refused"):
        walk.failed(ConnectionLost("refused"))
    with pytest.raises(ConnectionLost, match="refused"):
        walk.step()


def _answer_login(walk: Walk, token: str) -> None:
    step = walk.step()
    assert isinstance(step, HttpRequest)
    assert step.url == "http://h:1/v1/api/auth/login"
    assert json.loads(step.body) == {"user": "a", "password": "p"}
    walk.done(HttpAnswer(200, json.dumps({**LOGIN, "access_token": token}).encode()))


def test_a_refused_token_is_renewed_once_by_password() -> None:
    _, walk = _walk(account=Account("http://h:1", user="a", password="p", token="old"))
    walk.step()
    walk.done(None)
    walk.done(REFUSED)
    _answer_login(walk, "new")
    step = walk.step()
    assert isinstance(step, Open)
    assert step.headers == {"Authorization": "Bearer new"}
    walk.done(None)
    with pytest.raises(AuthenticationFailed, match="Invalid credentials"):
        walk.done(REFUSED)


def test_a_refused_token_without_password_and_a_refused_password_are_errors() -> None:
    _, walk = _walk()
    walk.step()
    walk.done(None)
    with pytest.raises(AuthenticationFailed):
        walk.done(REFUSED)
    _, walk = _walk(account=Account("http://h:1", user="a", password="p"))
    walk.step()
    with pytest.raises(AuthenticationFailed, match="Invalid credentials"):
        walk.done(HttpAnswer(401, b'{"error":"unauthorized","message":"Invalid credentials"}'))


def test_a_handshake_is_retried_only_when_the_server_may_change_its_mind() -> None:
    _, walk = _walk()
    _subscribed(walk)
    walk.step()
    walk.failed(ConnectionLost("cut"))
    walk.done(None)
    assert isinstance(walk.step(), Open)
    walk.failed(ServerError(503, "HTTP_503", "stopping"))
    assert walk.step() == Pause(0.1)
    walk.done(None)
    walk.step()
    with pytest.raises(ServerError, match="Origin"):
        walk.failed(ServerError(403, "HTTP_403", "Origin not allowed"))


def test_a_silent_server_is_probed_and_kept_only_if_it_answers() -> None:
    _, walk = _walk()
    _subscribed(walk)
    _delivered(walk, _batch())
    for is_alive in (True, False):
        steps: list[Step] = []
        for outcome in (None, None, None, is_alive):
            steps.append(walk.step())
            walk.done(outcome)
        assert steps == [Receive(5.0), Probe(), Receive(5.0), Answered()]
    assert isinstance(walk.step(), Pause)


def test_an_error_frame_ends_it_with_the_cursor() -> None:
    _, walk = _walk()
    _subscribed(walk)
    _delivered(walk, _batch(5))
    with pytest.raises(LiveError, match="SLOW: behind") as caught:
        walk.done('{"type":"error","subscription_id":"live","code":"SLOW","message":"behind"}')
    assert (caught.value.code, caught.value.cursor) == ("SLOW", 5)


def test_a_refused_resume_ends_it_and_is_not_tried_again() -> None:
    _, walk = _walk()
    _subscribed(walk)
    _delivered(walk, _batch(5))
    walk.failed(ConnectionLost("cut"))
    walk.done(None)
    assert isinstance(walk.step(), Open)
    walk.done(None)
    walk.done(SIGNED_IN)
    assert isinstance(walk.step(), Send)
    walk.done(None)
    with pytest.raises(LiveError, match="NOT_FOUND: made anew") as caught:
        walk.done('{"type":"error","subscription_id":"live","code":"NOT_FOUND","message":"made anew"}')
    assert (caught.value.code, caught.value.cursor) == ("NOT_FOUND", 5)


def test_a_token_that_expires_meanwhile_is_renewed_and_the_query_resumed() -> None:
    _, walk = _walk(account=Account("http://h:1", user="a", password="p", token="old"))
    _subscribed(walk)
    _delivered(walk, _batch(5))
    walk.done('{"type":"auth_error","message":"the token has expired; sign in again"}')
    assert isinstance(walk.step(), Pause)
    walk.done(None)
    assert isinstance(walk.step(), Open)
    walk.done(None)
    walk.done(REFUSED)
    _answer_login(walk, "new")
    assert _subscribed(walk) == {"batch_size": 1000, "from": 5}


@pytest.mark.parametrize("frame", ["{", b"\x1f\x8bno", _change("insert", 1).replace('"_seq"', '"seq"')])
def test_a_frame_that_is_not_understood_is_an_error_and_no_gap(frame: str) -> None:
    _, walk = _walk()
    _subscribed(walk)
    walk.step()
    with pytest.raises(ProtocolViolation):
        walk.done(frame)


def test_an_update_shows_a_column_that_became_null() -> None:
    _, walk = _walk()
    _subscribed(walk)
    _delivered(walk, _batch(5))
    frame = json.loads(_change("update", 6))
    frame["old_values"] = [{"id": "1", "_seq": "5", "note": "x"}]
    walk.done(json.dumps(frame))
    step = walk.step()
    assert isinstance(step, Deliver)
    assert step.change.row == {"id": 1, "_seq": 6, "note": None}
    assert step.change.old == {"id": 1, "_seq": 5, "note": "x"}


def test_sequence_ids_as_text_and_rows_in_one_frame_are_understood() -> None:
    _, walk = _walk()
    _subscribed(walk)
    text = _batch(5, 6, more=True).replace('"last_seq_id": 6', '"last_seq_id": "6"')
    assert _delivered(walk, text)[0] == ("send", 6)
    frame = json.loads(_change("insert", 7))
    frame["rows"].append({"id": "2", "_seq": "8"})
    assert _delivered(walk, json.dumps(frame)) == [("insert", 7), ("insert", 8)]


PRUNED = '{"type":"error","subscription_id":"live","code":"HISTORY_PRUNED","message":"trimmed"}'


def _asked_again(walk: Walk) -> None:
    """Lose the connection; come to where the answer to the new subscription is awaited."""
    walk.failed(ConnectionLost("cut"))
    walk.done(None)
    assert isinstance(walk.step(), Open)
    walk.done(None)
    walk.done(SIGNED_IN)
    assert isinstance(walk.step(), Send)
    walk.done(None)


def test_below_the_floor_of_the_log_a_whole_query_begins_anew_and_another_one_ends() -> None:
    follow, walk = _walk(whole=True)
    _subscribed(walk)
    _delivered(walk, _batch(5))
    _asked_again(walk)
    walk.done(PRUNED)
    assert walk.step() == Anew()
    assert not follow.snapshot_complete
    walk.take()
    assert walk.step() == Pause(0.1)
    walk.done(None)
    assert _subscribed(walk) == {"batch_size": 1000}
    assert _delivered(walk, _batch(5, 9)) == [("snapshot", 5), ("snapshot", 9), ("done", 0)]
    _, walk = _walk()
    _subscribed(walk)
    _delivered(walk, _batch(5))
    _asked_again(walk)
    with pytest.raises(LiveError, match="HISTORY_PRUNED") as caught:
        walk.done(PRUNED)
    assert caught.value.cursor == 5


def test_a_log_that_is_trimmed_under_a_whole_query_begins_it_anew() -> None:
    _, walk = _walk(whole=True)
    _subscribed(walk)
    _delivered(walk, _batch(5))
    walk.done(PRUNED)
    assert walk.step() == Anew()


def test_a_row_of_other_columns_begins_a_whole_query_anew_but_once_for_a_schema() -> None:
    _, walk = _walk(whole=True)
    _subscribed(walk)
    _delivered(walk, _batch(5))
    walk.done(_change("update", 6, note="x"))
    assert walk.step() == Anew()
    walk.take()
    assert walk.step() == Pause(0.05)
    walk.done(None)
    _subscribed(walk)
    _delivered(walk, _batch(6))
    assert _delivered(walk, _change("update", 7, note="y")) == [("update", 7)]
    _, walk = _walk()
    _subscribed(walk)
    _delivered(walk, _batch(5))
    assert _delivered(walk, _change("update", 6, note="x")) == [("update", 6)]


def test_other_columns_after_a_reconnect_begin_a_whole_query_anew() -> None:
    follow, walk = _walk(whole=True)
    _subscribed(walk)
    _delivered(walk, _batch(5))
    _asked_again(walk)
    altered = json.loads(_ack())
    altered["schema"].append({"name": "note", "data_type": "Text", "index": 1})
    walk.done(json.dumps(altered))
    assert walk.step() == Anew()
    assert [field.name for field in follow.schema] == ["id", "note"]


def test_another_role_ends_it() -> None:
    _, walk = _walk()
    _subscribed(walk)
    _delivered(walk, _batch(5))
    walk.failed(ConnectionLost("the account was changed; sign in again"))
    walk.done(None)
    assert isinstance(walk.step(), Open)
    walk.done(None)
    with pytest.raises(LiveError, match="ROLE_CHANGED: the account's role is dba now and was user"):
        walk.done(SIGNED_IN.replace('"user","protocol"', '"dba","protocol"'))


@pytest.mark.parametrize(
    ("failure", "options", "text"),
    [
        (ValueError, {"batch_size": -1}, "batch_size is -1; it is from 1 to"),
        (ValueError, {"batch_size": 0}, "batch_size is 0"),
        (ValueError, {"batch_size": 1 << 63}, "batch_size is 9223372036854775808"),
        (TypeError, {"batch_size": "10"}, "batch_size is a whole number, not a str"),
        (TypeError, {"batch_size": None}, "batch_size is a whole number, not a NoneType"),
        (TypeError, {"batch_size": True}, "batch_size is a whole number, not a bool"),
        (TypeError, {"batch_size": 1.0}, "batch_size is a whole number, not a float"),
        (ValueError, {"last_rows": -1}, "last_rows is -1"),
        (ValueError, {"last_rows": 11, "batch_size": 10}, r"last_rows \(11\) is more than batch_size \(10\)"),
        (TypeError, {"last_rows": "all"}, "last_rows is a whole number"),
        (ValueError, {"from_seq": -1}, "from_seq is -1"),
        (ValueError, {"from_seq": 1 << 63}, "from_seq is 9223372036854775808"),
        (TypeError, {"from_seq": "17"}, "from_seq is a whole number"),
        (TypeError, {"view": 1}, "view is True or False, not a int"),
        (TypeError, {"raw": None}, "raw is True or False"),
        (TypeError, {"patience": 5}, "patience is a Patience"),
        (TypeError, {"sql": 5}, "a live query is a text, not a int"),
        (ValueError, {"sql": "  "}, "this text is empty"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_sent(
    failure: type[Exception], options: dict[str, Any], text: str
) -> None:
    account = Account("http://127.0.0.1:1", token="t")
    with pytest.raises(failure, match=text):
        Follow(account, **{"sql": "SELECT * FROM app.notes"} | options)


@pytest.mark.parametrize("wrong", [{"auth_s": -1.0}, {"idle_s": float("nan")}, {"reconnects_max": -1}])
def test_patience_is_never_negative(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it is"):
        Patience(**wrong)
    with pytest.raises(TypeError, match="is a"):
        Patience(**dict.fromkeys(wrong, "long"))
