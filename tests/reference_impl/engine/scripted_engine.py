"""An engine without a model, whose steps a test allows one by one: for what depends on when something happens.

It keeps the promises of `Engine` that whoever serves one relies on, and none of its arithmetic: each step gives every
request one more letter, `a` first, until it has made `max_tokens` of them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from reference_impl.engine.engine import Engine, RequestRefused, StepReport
from reference_impl.engine.outputs import FinishReason, Piece, Usage
from reference_impl.model.byte_tokenizer import ByteTokenizer
from reference_impl.model.sampling import Sampled, SamplingParams

REFUSED = 7
"""A prompt that begins with this token is refused."""
BROKEN = 8
"""And one with this makes `add` itself fail."""


class ScriptedEngine:
    """free: steps need no `allow`. What is put into `error` is raised by the next step from `error_at` on.

    failing: the requests that it ends; without them it breaks the engine.
    """

    def __init__(self, *, free: bool = True) -> None:
        self.loaded = SimpleNamespace(name="scripted", tokenizer=ByteTokenizer())
        self.longest_request_tokens = 1_000
        self.last_step = StepReport()
        self.threads: set[str] = set()
        self.aborted: list[int] = []
        self.live: dict[int, tuple[int, SamplingParams, list[int]]] = {}
        self.steps = 0
        self._ended: list[Piece] = []
        self._next = 0
        self._free = free
        self._allowed = threading.Semaphore(0)
        self.broken: str | None = None
        self.failing: list[int] = []
        self.error: BaseException | None = None
        self.error_at = 0

    @property
    def served(self) -> Engine:
        """This, for those who ask for the real one."""
        return cast(Engine, self)

    def allow(self, steps: int = 1) -> None:
        """Let so many more steps run; called from the test's thread."""
        self._allowed.release(steps)

    @property
    def has_work(self) -> bool:
        return bool(self.live or self._ended)

    @property
    def num_running(self) -> int:
        return len(self.live)

    def add(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        salt: str = "",
        tenant: str = "",
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> int:
        if prompt[0] == REFUSED:
            raise RequestRefused("invalid", "a prompt that nobody wants")
        if prompt[0] == BROKEN:
            raise TypeError("nobody foresaw this prompt")
        request = self._next
        self._next += 1
        self.live[request] = (len(prompt), params, [0] * params.n)
        return request

    def abort(self, request: int) -> None:
        self._end(request, FinishReason.ABORT)
        self.aborted.append(request)

    def _end(self, request: int, reason: FinishReason, error: str | None = None) -> None:
        prompt_tokens, _, made = self.live.pop(request)
        usage = Usage(prompt_tokens, 0, sum(made))
        for choice in range(len(made)):
            last = usage if choice == len(made) - 1 else None
            self._ended.append(Piece(request, choice, "", (), reason, None, last, error))

    def step(self) -> list[Piece]:
        if not self._free and not self._allowed.acquire(timeout=20):
            raise AssertionError("no step was allowed for 20 seconds")
        self.steps += 1
        self.threads.add(threading.current_thread().name)
        if self.error is not None and self.steps >= self.error_at:
            self._fail(self.error)
        pieces, self._ended = self._ended, []
        for request, (prompt_tokens, params, made) in list(self.live.items()):
            for choice in range(params.n):
                letter = chr(ord("a") + made[choice] % 26)
                made[choice] += 1
                done = made[choice] == params.max_tokens
                usage = Usage(prompt_tokens, 0, sum(made)) if done and choice == params.n - 1 else None
                finish = FinishReason.LENGTH if done else None
                pieces.append(Piece(request, choice, letter, (Sampled(ord(letter)),), finish, None, usage))
            if made[-1] == params.max_tokens:
                del self.live[request]
        self.last_step = StepReport(0, len(pieces), len(pieces), len(pieces))
        return pieces

    def _fail(self, error: BaseException) -> None:
        if not self.failing:
            self.broken = str(error)
        for request in self.failing:
            self._end(request, FinishReason.ERROR, str(error))
        self.failing, self.error = [], error if self.broken is not None else None
        raise error


def letters(count: int) -> str:
    """The answer of so many tokens."""
    return "".join(chr(ord("a") + number % 26) for number in range(count))
