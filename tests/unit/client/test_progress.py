"""Through any interruptions every change is taken once, and the cursor never passes one that wasn't."""

from hypothesis import given
from hypothesis import strategies as st

from upwell.client.progress import Progress


def test_the_cursor_of_a_resume_waits_for_the_missed_deletes() -> None:
    progress = Progress.after(10)
    assert progress.take_row(12)
    assert progress.cursor == 10, "a delete at 11 may still come"
    assert progress.take_change(11)
    assert progress.cursor == 10
    assert progress.take_change(13)
    assert progress.cursor == 13


def test_an_interrupted_resume_delivers_nothing_twice() -> None:
    progress = Progress.after(10)
    assert [progress.take_row(12), progress.take_change(11)] == [True, True]
    progress.reconnected()
    assert [progress.take_row(12), progress.take_row(15)] == [False, True]
    assert [progress.take_change(11), progress.take_change(14), progress.take_change(16)] == [
        False,
        True,
        True,
    ]
    assert progress.cursor == 16


Op = st.tuples(st.integers(0, 4), st.booleans())


@given(st.lists(st.lists(Op, max_size=6), min_size=1, max_size=6), st.data())
def test_any_interruptions_leave_the_rows_of_the_server(
    rounds: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    """Each round: the server's rows change while nobody listens, then a resume is cut after any frame."""
    server: dict[int, int] = {}
    deletes: list[tuple[int, int]] = []
    client: dict[int, int] = {}
    taken: set[int] = set()
    progress = Progress()
    seq = 0
    for number, ops in enumerate([*rounds, []]):
        for key, is_delete in ops:
            if is_delete and key not in server:
                continue
            seq += 1
            if is_delete:
                del server[key]
                deletes.append((seq, key))
            else:
                server[key] = seq
        progress.reconnected()
        floor = progress.cursor or 0
        resumed = progress.cursor is not None
        frames = [
            ("row", at, key) for key, at in sorted(server.items(), key=lambda item: item[1]) if at > floor
        ]
        frames += [("gone", at, key) for at, key in deletes if resumed and at > floor and key not in server]
        last = number == len(rounds)
        length = len(frames) if last else data.draw(st.integers(0, len(frames)), label="frames until the cut")
        for kind, at, key in frames[:length]:
            news = progress.take_row(at) if kind == "row" else progress.take_change(at)
            assert not (news and at in taken), f"{at} was delivered twice"
            if news:
                taken.add(at)
                if kind == "row":
                    client[key] = at
                else:
                    client.pop(key, None)
    assert client == server
