"""Text of one answer, as its tokens come.

Owns: the bytes of a character that is not complete yet, and the text that may turn out to be the beginning of a stop
string. Knows nothing of logits, requests or protocols. A token is a piece of bytes, not of text: one character may take
several tokens, so nothing is shown of it before the last.
Cost: O(1) amortised a byte, whatever was made before: no token is decoded twice.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from reference_impl.engine.stop_strings import START, StopStrings
from reference_impl.model.tokenizer import Tokenizer


class Detokenizer:
    """All of `push` and then `flush`, joined, is `tokenizer.decode` of all tokens, cut before a stop string.

    That is the one that is complete first, character by character; of several complete at once, the longest. How the
    text falls into tokens changes nothing.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        """Raises: ValueError on an empty stop string."""
        self.stopped_by: str | None = None
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopStrings(stop) if stop else None
        self._state = START
        self._held: deque[str] = deque()
        self._flushed = False

    def push(self, token_id: int) -> str:
        """The text that can be read now and could not before. It is "" once a stop string was found.

        Raises: RuntimeError after `flush`.
        """
        if self._flushed:
            raise RuntimeError("this answer is over, it was flushed")
        if self.stopped_by is not None:
            return ""
        return self._read(self._decoded(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """The rest: what was held back, and U+FFFD for a character that stayed incomplete. Then it is over."""
        if self._flushed or self.stopped_by is not None:
            self._flushed = True
            return ""
        self._flushed = True
        text = self._read(self._utf8.decode(b"", final=True))
        if self.stopped_by is None:
            text += self._release(len(self._held))
        return text

    def _decoded(self, piece: bytes) -> str:
        pending, _ = self._utf8.getstate()
        if not pending:
            # Most tokens are whole characters, for which the decoder that keeps a rest takes twice as long.
            try:
                return piece.decode()
            except UnicodeDecodeError:
                pass
        return self._utf8.decode(piece)

    def _read(self, text: str) -> str:
        """`text` is the next of the answer: what of it, and of what is held, can be shown."""
        stops = self._stops
        if stops is None:
            return text
        for character in text:
            self._held.append(character)
            self._state = stops.step(self._state, character)
            found = stops.found[self._state]
            if found is not None:
                self.stopped_by = found
                shown = self._release(len(self._held) - len(found))
                self._held.clear()
                return shown
        return self._release(len(self._held) - stops.depth[self._state])

    def _release(self, count: int) -> str:
        return "".join(self._held.popleft() for _ in range(count))

    def check_invariants(self) -> None:
        """What is held begins a stop string, and is no longer than it has to be. AssertionError names what is held."""
        if self._stops is None or self.stopped_by is not None or self._flushed:
            assert not self._held, f"nothing is to be held back, {''.join(self._held)!r} is"
            return
        state = START
        for character in self._held:
            state = self._stops.step(state, character)
        assert state == self._state, f"{''.join(self._held)!r} is held back and begins no stop string"
        assert len(self._held) == self._stops.depth[state], f"too much is held back: {''.join(self._held)!r}"
