"""The engine: requests in, pieces of answers out, one step at a time.

Owns: the requests that are not answered yet, and the loop plan -> logits -> tokens -> word to the scheduler. Knows
nothing of which block is whose, of who runs when, of how anything is computed, or of threads: one caller at a time
(`async_engine.py` brings the threads).

    add ──> scheduler                            refused at the door with a reason, or it waits
    step:   scheduler.schedule  ──> Plan         who computes how much
            runner.run          ──> StepLogits   swaps, copies, the model
            sampler.begin       ──> Choice       one token a request, one an answer where a prompt has just ended
            answer.take         ──> Piece        text, and whether the answer is done
            scheduler.finish_step                publishes blocks, forks, frees who is done

The first three are the launch of a step, the others its landing. Here one follows the other; `pipelined.py` launches
the next step before the last one has landed.

What is raised while a step is computed (a device out of memory, logits that are no numbers, somebody's attention) ends
the requests of that step with an error and frees their blocks; what was made before is said, and the others go on. What
a scheduler or a memory raises, or a GPU that is lost, ends them all: nobody knows any more who holds what.

Cost of a step: the runner's, and O(1) Python a token made. Invariants: those of the scheduler and its memory, and each
answer that is not done is a live request of the scheduler.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import index

import torch

from reference_impl.engine.answer import Answer, Group
from reference_impl.engine.detokenizer import Detokenizer
from reference_impl.engine.device import is_alive
from reference_impl.engine.door import RequestRefused as RequestRefused
from reference_impl.engine.door import checked_prompt, refused
from reference_impl.engine.flight import Blame, Flight
from reference_impl.engine.flight import StepReport as StepReport
from reference_impl.engine.outputs import FinishReason, Piece, in_one_line
from reference_impl.engine.runner import Awaited, Runner
from reference_impl.memory.kv_memory import longest_served
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampler import sampler_for
from reference_impl.model.sampling import MAX_SEED, Sampled, SamplingParams
from reference_impl.sched.plan import Plan
from reference_impl.sched.request import Request
from reference_impl.sched.surface import EngineScheduler

Clock = Callable[[], float]
Forks = dict[int, list[tuple[Request, int]]]
"""Parent -> its children, each with the id of its first token."""


class Engine:
    """See the module. `scheduler` and the runner share one memory, and nobody else calls any of them.

    max_waiting: requests that may wait to be admitted; one more is refused as busy. debug: check every invariant after
    every step. max_context_tokens: prompt and answer together, at most what the model was made for. has_prefix_cache:
    whether the memory looks for the tokens of a prompt, and may find them.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        scheduler: EngineScheduler,
        runner: Runner,
        *,
        clock: Clock = time.monotonic,
        max_waiting: int | None = None,
        max_context_tokens: int | None = None,
        has_prefix_cache: bool = True,
        debug: bool = False,
    ) -> None:
        """Raises: ValueError if runner and scheduler do not share a memory, or a limit is below 1 or too large."""
        if runner.memory is not scheduler.memory:
            raise ValueError("runner and scheduler have memories of their own; they must share one")
        if max_waiting is not None and max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1, got {max_waiting}")
        longest = loaded.config.max_context_tokens
        self.max_context_tokens = longest if max_context_tokens is None else max_context_tokens
        if not 2 <= self.max_context_tokens <= longest:
            raise ValueError(f"max_context_tokens must be 2 to the model's {longest}, got {max_context_tokens}")
        self.loaded = loaded
        self.scheduler = scheduler
        self.runner = runner
        self.longest_request_tokens = longest_served(
            scheduler.memory, min(self.max_context_tokens, scheduler.memory.capacity)
        )
        """Prompt and answer of one request together, as far as context and memory go; 0 if no request would fit."""
        self.max_waiting = max_waiting
        self.last_step = StepReport()
        self._clock = clock
        self._has_prefix_cache = has_prefix_cache
        self._debug = debug
        model = loaded.transformer
        self._sampler = sampler_for(model.device, loaded.config.vocab_size, ready_for=model.dtype)
        self._groups: dict[int, Group] = {}
        self._answers: dict[int, Answer] = {}
        self._token_ids: dict[int, array[int]] = {}
        self.broken: str | None = None
        """What made the engine fail for good, in one line."""
        self._flight: Flight | None = None
        """The step that was launched and has not landed: between two steps, only where these overlap."""
        self._said: list[Piece] = []
        """What the next `step` returns."""
        self._blame = Blame()
        self._has_failed = False
        self._wreck: tuple[object, ...] = ()
        self._next_id = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do or say something."""
        return bool(self._groups or self._said or self._flight)

    @property
    def num_running(self) -> int:
        return self.scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self.scheduler.num_waiting

    # Requests come and go ---------------------------------------------------------------------------------------

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
        """Take a request; returns its id. Nothing is kept of one that is refused.

        salt: requests share cached blocks only under one salt. timeout_s: from now on; what is not done then ends.
        Raises: RequestRefused, naming the value; RuntimeError if the engine is broken.
        """
        if self.broken is not None:
            raise RuntimeError(f"the engine failed and serves nobody until it is made anew: {self.broken}")
        ids = checked_prompt(
            prompt,
            params,
            timeout_s,
            vocab_size=self.loaded.config.vocab_size,
            max_context_tokens=self.max_context_tokens,
            max_running=self.scheduler.limits.max_running,
        )
        if self.max_waiting is not None and self.num_waiting >= self.max_waiting:
            raise RequestRefused("busy", f"{self.num_waiting} requests wait, as many as may: try again later")
        seed = secrets.randbelow(MAX_SEED) if params.seed is None else params.seed
        deadline_s = None if timeout_s is None else self._clock() + timeout_s
        group = Group(self._new_id(), ids, replace(params, seed=seed), salt, tenant, priority, deadline_s)
        at_once = 1 if self.scheduler.can_fork else params.n
        requests = [
            group.scheduler_request(group.request if choice == 0 else self._new_id()) for choice in range(at_once)
        ]
        self._take_all(requests)
        for choice, request in enumerate(requests):
            self._keep(Answer(group, choice, request.request, self._detokenizer(params)), request)
        group.unforked = params.n - at_once
        self._groups[group.request] = group
        return group.request

    def _take_all(self, requests: Sequence[Request]) -> None:
        """Give them all to the scheduler, or none. Raises: RequestRefused; what the scheduler raised."""
        taken: list[int] = []
        try:
            for request in requests:
                refusal = self.scheduler.add(request)
                if refusal is not None:
                    raise refused(refusal)
                taken.append(request.request)
        except BaseException as error:
            try:
                for identity in taken:
                    self.scheduler.abort(identity)
            except Exception as second:
                self._break(f"{in_one_line(error)}; then {in_one_line(second)}")
            raise

    def abort(self, request: int, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request between two steps; its last pieces come out of the next step.

        Its blocks are free at once, or when the step that it is in has landed.
        Raises: KeyError if it is unknown or over; what the scheduler raised, and then the engine is broken.
        """
        group = self._groups.get(index(request))
        if group is None:
            raise KeyError(f"no request {request}")
        try:
            self._end(group, reason)
        except BaseException as error:
            self._break(in_one_line(error))
            raise

    def _end(self, group: Group, reason: FinishReason, error: str | None = None) -> None:
        """End all of its answers that have not ended."""
        if group.unforked:
            # Those that were to begin as forks of the first have an end too, though nobody else ever knew them.
            self._unborn(group.live[0])
        for answer in list(group.live.values()):
            # The scheduler hears of a fork, or that an answer is over, when a step lands.
            if answer.identity in self._answers:
                self.scheduler.abort(answer.identity)
                self._forget(answer)
            self._said.append(answer.end(reason, error=error))
        self._groups.pop(group.request, None)

    def abort_all(self) -> None:
        """End every request that is not over, as `abort`."""
        for request in list(self._groups):
            self.abort(request)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _detokenizer(self, params: SamplingParams) -> Detokenizer:
        return Detokenizer(self.loaded.tokenizer, params.stop)

    def _keep(self, answer: Answer, request: Request) -> None:
        assert request.token_ids is not None, "a real model needs the ids"
        self._answers[answer.identity] = answer
        self._token_ids[answer.identity] = request.token_ids

    def _forget(self, answer: Answer) -> None:
        del self._answers[answer.identity], self._token_ids[answer.identity]

    # One step ---------------------------------------------------------------------------------------------------

    def step(self) -> list[Piece]:
        """Run one step; what it adds to the answers, and the last pieces of what was aborted before it.

        Raises: what a part of the engine raised. Who ended by it is said by the next call, which does nothing else;
        unless `broken` is set then, the others go on.
        """
        if not self._has_failed:
            started_s = self._clock()
            try:
                self._expire(started_s)
                if self._groups or self._flight:
                    self._advance(started_s)
                if self._debug:
                    self.check_invariants()
            except BaseException as error:
                self._fail(error)
                raise
        self._has_failed = False
        pieces, self._said = self._said, []
        return pieces

    def _advance(self, started_s: float) -> None:
        """Compute a step."""
        flight = self._launch()
        self._say(flight, self._land(flight), started_s)

    def _say(self, flight: Flight, pieces: list[Piece], started_s: float) -> None:
        """The step has landed, and these are its pieces."""
        self._said += pieces
        self.last_step = StepReport.of(flight.plan, pieces, self._clock() - started_s)

    def _expire(self, now_s: float) -> None:
        late = [group for group in self._groups.values() if group.deadline_s is not None and group.deadline_s <= now_s]
        for group in late:
            self._end(group, FinishReason.TIMEOUT)

    def _note_reused(self, plan: Plan) -> None:
        if not self._has_prefix_cache:
            return
        for identity in plan.admitted:
            answer = self._answers[identity]
            # What it finds again after a preemption is the engine's affair, not the client's.
            if answer.choice == 0 and answer.group.cached_tokens is None:
                answer.group.cached_tokens = plan.reused.get(identity, 0)

    def _launch(self, awaited: Awaited | None = None) -> Flight:
        """Plan a step, compute it, and begin to choose its tokens. awaited: tokens that nobody here has seen yet."""
        plan = self.scheduler.schedule()
        self._note_reused(plan)
        # Who was moved in or out may have lost keys and values as well as who was computed.
        members = {*plan.scheduled, *plan.swapped_in, *plan.swapped_out}
        with self._blame.computing(self._answers[identity] for identity in members):
            return self._computed(plan, awaited)

    def _computed(self, plan: Plan, awaited: Awaited | None) -> Flight:
        step = self.runner.run(plan, self._token_ids, awaited)
        unseen = awaited.rows if awaited else {}
        answers, logits = list(map(self._answers.__getitem__, step.rows)), step.logits
        forked = {answer.identity: self._unborn(answer) for answer in answers if answer.forks_now}
        if forked:
            families = [[answer, *forked.get(answer.identity, ())] for answer in answers]
            rows = [row for row, family in enumerate(families) for _ in family]
            answers = [member for family in families for member in family]
            logits = logits[torch.tensor(rows, device=logits.device)]
        wishes = [answer.next_wish if answer.identity in unseen else answer.wish for answer in answers]
        return Flight(plan, answers, forked, self._sampler.begin(logits, wishes) if answers else None)

    def _land(self, flight: Flight) -> list[Piece]:
        """Give each answer that was not ended meanwhile its token, and tell the scheduler that the step is done."""
        chosen = self._chosen(flight)
        live = [pair for pair in zip(flight.answers, chosen, strict=True) if pair[0].is_live]
        ends = self.loaded.eos_token_ids
        pieces = [answer.take(sampled, ends) for answer, sampled in live]
        self._tell([answer for answer, _ in live], pieces, [sampled for _, sampled in live], flight.forked)
        return pieces

    def _chosen(self, flight: Flight) -> list[Sampled]:
        """The token of each of its answers. Waits for the device."""
        with self._blame.computing(flight.answers):
            return flight.choice.sampled() if flight.choice is not None else []

    def _unborn(self, answer: Answer) -> list[Answer]:
        """The answers that begin now, with the first token of the first one."""
        group = answer.group
        first = group.params.n - group.unforked
        group.unforked = 0
        return [
            Answer(group, choice, self._new_id(), self._detokenizer(group.params))
            for choice in range(first, group.params.n)
        ]

    def _tell(
        self, answers: list[Answer], pieces: list[Piece], chosen: list[Sampled], forked: dict[int, list[Answer]]
    ) -> None:
        """The step is done: who ended, who goes on with which token, and who begins."""
        tokens = {answer.identity: sampled.token for answer, sampled in zip(answers, chosen, strict=True)}
        done = {answer.identity for answer, piece in zip(answers, pieces, strict=True) if piece.finish is not None}
        # Those among the forks that were not ended while the step was under way.
        newborn = {child.identity for children in forked.values() for child in children} & tokens.keys()
        forks: Forks = {}
        for parent, children in forked.items():
            for child in children:
                if child.identity in newborn - done:
                    request = child.group.scheduler_request(child.identity)
                    self._keep(child, request)
                    forks.setdefault(parent, []).append((request, tokens[child.identity]))
        go_on = {identity: token for identity, token in tokens.items() if identity not in done | newborn}
        self.scheduler.finish_step(done - newborn, go_on, forks)
        for answer in answers:
            if answer.identity in done and answer.identity not in newborn:
                self._forget(answer)
            if answer.group.is_over:
                self._groups.pop(answer.group.request, None)

    # A step that fails -------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """End those whose computation raised `error`; all, if it came from elsewhere or the device is lost."""
        said = in_one_line(error)
        concerned = self._blame.taken()
        self._has_failed = True
        # The device is waited for: blocks may only go to others once nothing is written to them any more.
        if not is_alive(self.loaded.transformer.device):
            # To free what a lost GPU was to read or write would end the process, in torch, before anybody hears of it.
            self._wreck = error, self._flight
            self._break(said)
            return
        if not concerned:
            self._break(said)
            return
        try:
            for group in concerned:
                self._end(group, FinishReason.ERROR, said)
            if self._flight is None:
                # Nobody in the step under way makes a token any more; prompts that are computed in part go on.
                self.scheduler.finish_step()
            if self._debug:
                self.check_invariants()
        except Exception as second:
            self._break(f"{said}; then {in_one_line(second)}")

    def _break(self, said: str) -> None:
        """Everybody ends, and what the scheduler and its memory know is not asked for any more."""
        self.broken, self._flight = said, None
        self._answers.clear()
        self._token_ids.clear()
        for group in list(self._groups.values()):
            self._end(group, FinishReason.ERROR, said)

    def check_invariants(self) -> None:
        """I1 to I9, and that scheduler and engine have the same requests. AssertionError names the offender."""
        self._blame.check_invariants()
        if self.broken is not None:
            assert not self._groups, f"the engine is broken, and requests {sorted(self._groups)} have no end"
            return
        self.scheduler.check_invariants()
        self.runner.check_invariants()
        answers = {answer.identity for group in self._groups.values() for answer in group.live.values()}
        if self._flight is not None:
            answers -= self._flight.unborn
        assert answers == self._answers.keys() == self._token_ids.keys(), (
            f"I1: answers {answers ^ self._answers.keys()} are known in one place only"
        )
        for identity, answer in self._answers.items():
            ids = self._token_ids[identity]
            expected = len(answer.group.prompt) + len(answer.made)
            assert len(ids) == expected, f"I9: answer {identity} has {len(ids)} tokens, {expected} were given and made"
        if not self.has_work:
            account = self.scheduler.memory.account()
            assert account.held == 0, f"I1: nobody is served, and {account.held} tokens are held"
