"""A vocabulary of the 256 bytes.

Owns: a tokenizer for models that have none of their own, such as the built-in "tiny". Knows nothing of files and needs
no package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reference_impl.model.messages import check_messages
from reference_impl.model.tokenizer import decode_bytes, not_negative, valid_utf8


class ByteTokenizer:
    """A `Tokenizer` whose tokens are bytes, and two special ones. There is no BOS.

    A turn of a chat is TURN, the role, a line break, the content, END.
    """

    TURN, END = 256, 257
    SPELLING = ("<|turn|>", "<|end|>")

    vocab_size = 258
    bos_token_id: int | None = None
    eos_token_ids = frozenset({END})

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        if not special:
            return list(valid_utf8(text))
        turn, end = self.SPELLING
        ids: list[int] = []
        for number, turns in enumerate(text.split(turn)):
            ids += [self.TURN] if number else []
            for place, plain in enumerate(turns.split(end)):
                ids += [self.END] if place else []
                ids += valid_utf8(plain)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        spelled = {} if skip_special else dict(enumerate(self.SPELLING, start=self.TURN))
        return decode_bytes(ids, self.token_bytes, spelled)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if not_negative(token_id) < self.TURN else b""

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        ids: list[int] = []
        for message in check_messages(messages):
            ids += [self.TURN, *self.encode(f"{message['role']}\n{message['content']}"), self.END]
        if add_generation_prompt:
            ids += [self.TURN, *self.encode("assistant\n")]
        return ids
