"""What the incremental detokenizer promises, beside decoding everything at once and cutting it afterwards."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.engine.detokenizer import Detokenizer
from reference_impl.model.byte_tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


class Pieces:
    """A tokenizer whose tokens stand for given bytes, so that characters and stop strings fall apart anyhow."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")


def shown(tokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], str | None]:
    """What each push and the flush showed, and by what it was stopped."""
    detokenizer = Detokenizer(tokenizer, stop)
    texts = []
    for token in ids:
        texts.append(detokenizer.push(token))
        detokenizer.check_invariants()
    texts.append(detokenizer.flush())
    detokenizer.check_invariants()
    return texts, detokenizer.stopped_by


def cut(text: str, stop: Sequence[str]) -> tuple[str, str | None]:
    """`text` before the stop string that is complete first, and of those complete at once before the longest."""
    for end in range(1, len(text) + 1):
        ending = [string for string in stop if text[:end].endswith(string)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def may_be_a_beginning(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that some stop string goes on from."""
    return max(
        (n for n in range(len(text) + 1) for string in stop if string.startswith(text[len(text) - n :])), default=0
    )


letters = st.sampled_from(["a", "b", "ab", "é", "€", "🙂", "\ufffd", "\n"])
stop_strings = st.lists(st.lists(letters, min_size=1, max_size=4).map("".join), max_size=4)
byte_strings = st.one_of(
    st.sampled_from(
        [b"a", b"b", b"ab", "é".encode(), b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x99\x82", b"\xff", b""]
    ),
    st.binary(max_size=4),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(byte_strings, max_size=30), stop_strings)
def test_what_is_shown_is_what_decoding_it_all_and_cutting_it_gives(pieces, stop):
    tokenizer = Pieces(pieces)
    ids = list(range(len(pieces)))
    texts, stopped_by = shown(tokenizer, ids, stop)
    assert ("".join(texts), stopped_by) == cut(tokenizer.decode(ids), stop)


@settings(max_examples=300, deadline=None)
@given(st.lists(letters, max_size=20), stop_strings)
def test_nothing_is_held_back_that_cannot_begin_a_stop_string(pieces, stop):
    tokenizer = Pieces([piece.encode() for piece in pieces])
    detokenizer = Detokenizer(tokenizer, stop)
    text = ""
    for token in range(len(pieces)):
        text += detokenizer.push(token)
        if detokenizer.stopped_by is not None:
            return
        whole = "".join(pieces[: token + 1])
        assert text == whole[: len(whole) - may_be_a_beginning(whole, stop)]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), stop_strings)
def test_how_text_falls_into_tokens_changes_neither_text_nor_stop(text, stop):
    data = text.encode()
    whole = Pieces([data])
    assert shown(BYTES, list(data), stop)[1] == shown(whole, [0], stop)[1]
    assert "".join(shown(BYTES, list(data), stop)[0]) == "".join(shown(whole, [0], stop)[0])


@given(st.lists(st.integers(0, 300), max_size=40))
def test_random_ids_of_a_real_tokenizer_read_as_it_decodes_them(ids):
    assert "".join(shown(BYTES, ids)[0]) == BYTES.decode(ids)


def test_a_character_is_shown_with_its_last_byte_and_not_before():
    assert shown(BYTES, list("a🙂b".encode()))[0] == ["a", "", "", "", "🙂", "b", ""]


def test_a_character_that_stays_incomplete_is_replaced_at_the_end():
    assert shown(BYTES, list("🙂".encode())[:2])[0] == ["", "", "\ufffd"]


def test_bytes_that_are_no_text_are_replaced_at_once():
    assert shown(BYTES, [0xFF, ord("a")])[0] == ["\ufffd", "a", ""]


def test_special_tokens_say_nothing():
    assert shown(BYTES, [ord("a"), ByteTokenizer.END, ord("b"), 999])[0] == ["a", "", "b", "", ""]


def test_a_stop_string_is_cut_off_across_tokens_and_nothing_comes_after_it():
    assert shown(BYTES, list(b"onETWOthree"), ["ETWO"]) == (["o", "n", *[""] * 10], "ETWO")


def test_text_that_only_began_like_a_stop_string_is_shown_as_soon_as_it_cannot_be_one():
    assert shown(BYTES, list(b"ENX"), ["END"])[0] == ["", "", "ENX", ""]


def test_text_that_might_have_become_a_stop_string_is_shown_at_the_end():
    assert shown(BYTES, list(b"aEN"), ["END"]) == (["a", "", "", "EN"], None)


def test_what_is_left_after_a_false_beginning_may_begin_another():
    # After "aab" does not fit, its end "ab" may still begin "abc".
    assert shown(Pieces([b"aa", b"ab", b"c", b"z"]), [0, 1, 2, 3], ["aaax", "abc"]) == (["", "aa", "", "", ""], "abc")


def test_the_first_to_be_complete_stops_and_of_those_complete_at_once_the_longest():
    assert shown(Pieces([b"xabcd"]), [0], ["abcd", "bc"]) == (["xa", ""], "bc")
    assert shown(Pieces([b"xabc"]), [0], ["c", "abc", "bc"]) == (["x", ""], "abc")


def test_a_stop_string_may_end_within_an_answers_last_incomplete_character():
    assert shown(BYTES, [ord("a"), 0xE2], ["\ufffd"]) == (["a", "", ""], "\ufffd")


def test_it_is_over_after_the_flush():
    detokenizer = Detokenizer(BYTES, ["x"])
    assert detokenizer.push(ord("a")) == "a"
    assert detokenizer.flush() == ""
    assert detokenizer.flush() == ""
    with pytest.raises(RuntimeError, match="it was flushed"):
        detokenizer.push(ord("a"))


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="a stop string is empty"):
        Detokenizer(BYTES, ["a", ""])


def test_the_time_of_a_token_does_not_grow_with_the_answer_nor_with_what_is_held_back():
    def seconds(count: int, stop: Sequence[str]) -> float:
        detokenizer = Detokenizer(BYTES, stop)
        start = time.perf_counter()
        for _ in range(count):
            detokenizer.push(ord("a"))
        return time.perf_counter() - start

    # All of the answer is held back: it may begin the stop string.
    for stop in ([], ["a" * 40_000 + "b"]):
        short = min(seconds(2_000, stop) for _ in range(3))
        assert min(seconds(20_000, stop) for _ in range(2)) < 60 * short
