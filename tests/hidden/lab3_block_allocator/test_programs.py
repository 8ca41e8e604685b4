"""Long random programs against the reference.

Owns: how programs are drawn: by hypothesis, which looks for short surprising ones, and by plain dice, which make long
ones. What is compared after every call stands in `autograder.judge.twins`. The seed is the submission's own.
"""

from __future__ import annotations

import random

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from autograder.judge.subject import Make
from autograder.judge.twins import Twins

GROUP = "programs"
PLACES = st.integers(0, 15)
"""Which sequence a rule means: a place among the living ones, or for the last number a wrong one."""
SETTINGS = hypothesis.settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
)


def unused_id(twins: Twins, place: int) -> int:
    """An id that no living sequence has, one of the first few: most had a life before."""
    return [seq for seq in range(len(twins.texts) + 5) if seq not in twins.texts][place % 5]


def machine_of(make: Make, num_blocks: st.SearchStrategy[int], block_size: st.SearchStrategy[int], most: int) -> type:
    """A state machine over calls good and bad, of up to `most` tokens. Most name a living sequence: on unknown ones
    every allocator is right."""
    counts = st.integers(0, most)

    class Programs(RuleBasedStateMachine):
        twins: Twins | None = None

        @initialize(blocks=num_blocks, tokens_per_block=block_size, tokens=st.integers(1, most))
        def start(self, blocks: int, tokens_per_block: int, tokens: int) -> None:
            self.twins = Twins(make, blocks, tokens_per_block)
            self.twins.call("allocate", 0, tokens)

        def living(self, place: int) -> int:
            """A living sequence, or an id that never was."""
            ids = list(self.twins.texts)
            return ids[place % len(ids)] if ids and place < 15 else -1

        def unused(self, place: int) -> int:
            """An id that is free, or one that is taken."""
            return unused_id(self.twins, place) if place < 15 else self.living(0)

        @rule(place=PLACES, tokens=counts)
        def allocate(self, place: int, tokens: int) -> None:
            self.twins.call("allocate", self.unused(place), tokens)

        @rule(place=PLACES, tokens=counts)
        def append(self, place: int, tokens: int) -> None:
            self.twins.call("append", self.living(place), tokens)

        @rule(place=PLACES)
        def append_one(self, place: int) -> None:
            self.twins.call("append", self.living(place))

        @rule(place=PLACES, child=PLACES)
        def fork(self, place: int, child: int) -> None:
            self.twins.call("fork", self.living(place), self.unused(child))

        @rule(place=PLACES)
        def free(self, place: int) -> None:
            self.twins.call("free", self.living(place))

        def teardown(self) -> None:
            if self.twins is not None and self.twins.sound:
                self.twins.look_at_all()

    return Programs


def explore(
    make: Make, seed: int, num_blocks: st.SearchStrategy[int], block_size: st.SearchStrategy[int], most: int
) -> None:
    """Draw programs with hypothesis from `seed` and run them on both."""
    machine = hypothesis.seed(seed)(machine_of(make, num_blocks, block_size, most))
    run_state_machine_as_test(machine, settings=SETTINGS)


def roll(make: Make, seed: int, sizes: tuple[int, int], calls: int, weights: dict[str, int], most: int) -> None:
    """One long program of plain dice over a pool of `sizes`: calls by weight, now and then a wrong one."""
    dice = random.Random(seed)
    twins = Twins(make, *sizes)
    methods, shares = list(weights), list(weights.values())
    for _ in range(calls):
        tight = twins.reference.num_free_blocks == 0 and dice.random() < 0.4
        method = "free" if tight else dice.choices(methods, shares)[0]
        known = dice.choice(list(twins.texts)) if twins.texts and dice.random() < 0.97 else -1
        unused = unused_id(twins, dice.randrange(5)) if dice.random() < 0.97 else known
        tokens = dice.randint(1, most) if dice.random() < 0.97 else 0
        arguments = {
            "allocate": (unused, tokens),
            "append": (known, tokens),
            "fork": (known, unused),
            "free": (known,),
        }
        twins.call(method, *arguments[method])
    twins.look_at_all()


def test_any_short_program_ends_as_in_the_reference(make: Make, seed: int) -> None:
    """Short programs of every kind of call agree with the reference in errors, counts, tables and text."""
    explore(make, seed, st.integers(3, 24), st.integers(1, 6), 9)


def test_programs_in_a_tiny_pool_end_as_in_the_reference(make: Make, seed: int) -> None:
    """In a pool that is nearly full all the time, every call agrees with the reference."""
    explore(make, seed + 1, st.integers(2, 6), st.integers(2, 4), 4)


def test_a_program_of_forks_in_a_tight_pool(make: Make, seed: int) -> None:
    """A long program of many forks in a tight pool agrees with the reference."""
    roll(make, seed + 2, (9, 4), 500, {"allocate": 2, "append": 9, "fork": 4, "free": 4}, 3)


def test_a_program_with_blocks_of_one_token(make: Make, seed: int) -> None:
    """A long program with block size 1 agrees with the reference."""
    roll(make, seed + 3, (40, 1), 300, {"allocate": 3, "append": 6, "fork": 3, "free": 4}, 5)


def test_a_program_of_long_sequences(make: Make, seed: int) -> None:
    """A long program with sequences of hundreds of tokens agrees with the reference."""
    roll(make, seed + 4, (160, 16), 250, {"allocate": 2, "append": 6, "fork": 2, "free": 3}, 300)


def test_a_program_of_many_sequences(make: Make, seed: int) -> None:
    """A program of more than a thousand calls agrees with the reference from the first to the last."""
    roll(make, seed + 5, (48, 4), 1200, {"allocate": 5, "append": 10, "fork": 3, "free": 6}, 9)
