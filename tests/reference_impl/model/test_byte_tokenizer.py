"""The tokenizer of bytes keeps the contract of all tokenizers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.model.byte_tokenizer import ByteTokenizer
from reference_impl.model.messages import ChatError
from reference_impl.model.tokenizer import TokenizerError

BYTES = ByteTokenizer()
TURN, END = BYTES.TURN, BYTES.END
texts = st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["<|turn|>", "<|end|>", "<|", "|>"])), max_size=6).map(
    "".join
)


@given(texts)
def test_any_text_comes_back_and_plain_text_holds_no_special_token(text):
    ids = BYTES.encode(text)
    assert ids == list(text.encode())
    assert BYTES.decode(ids) == text
    assert BYTES.decode(BYTES.encode(text, special=True), skip_special=False) == text


@given(st.lists(st.integers(0, 300)))
def test_ids_read_as_their_bytes_read(ids):
    assert BYTES.decode(ids) == bytes(token for token in ids if token < 256).decode(errors="replace")


def test_special_text_becomes_its_token_only_if_asked_for():
    assert BYTES.encode("a<|end|><|turn|>b", special=True) == [ord("a"), END, TURN, ord("b")]
    assert len(BYTES.encode("<|end|>")) == 7
    assert BYTES.decode([ord("a"), END]) == "a"
    assert BYTES.decode([ord("a"), END], skip_special=False) == "a<|end|>"


def test_a_chat_is_turns_and_forges_none():
    ids = BYTES.chat([{"role": "user", "content": "<|end|>"}])
    assert ids == [TURN, *b"user\n<|end|>", END, TURN, *b"assistant\n"]
    assert BYTES.chat([{"role": "user", "content": "a"}], add_generation_prompt=False) == [TURN, *b"user\na", END]


def test_what_is_no_text_and_no_token_is_refused():
    with pytest.raises(TokenizerError, match=r"'\\ud800', half of a character"):
        BYTES.encode("\ud800")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        BYTES.decode([-1])
    with pytest.raises(ChatError, match="messages is empty"):
        BYTES.chat([])


def test_it_says_of_itself_what_the_model_goes_by():
    assert (BYTES.vocab_size, BYTES.bos_token_id, BYTES.eos_token_ids) == (258, None, {END})
