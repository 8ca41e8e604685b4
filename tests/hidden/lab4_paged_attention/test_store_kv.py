"""store_kv: every key and value lands in its slot, and nothing else changes.

Owns: the properties of the write. Knows nothing of attention. Keys and values are compared bit by bit: they are moved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import Draw, Kind
from autograder.judge.subject import Make

GROUP = "store_kv"
KINDS = (cases.PLAIN, cases.HALF_ODD, cases.SINGLE, cases.PAIRS, cases.SEVENS)


def drawn(draw: Draw, kind: Kind, tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values [tokens, kv_heads, head_dim]."""
    shape = (tokens, kind.kv_heads, kind.head_dim)
    return draw.normal(*shape, dtype=kind.dtype), draw.normal(*shape, dtype=kind.dtype)


def blank(kind: Kind, num_blocks: int, form: str = "apart") -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Caches full of NaN, and their arenas."""
    keys, values, arenas = cases.caches(form, kind, num_blocks)
    keys.fill_(float("nan"))
    values.fill_(float("nan"))
    return keys, values, arenas


def slots_of(draw: Draw, kind: Kind, num_blocks: int, tokens: int) -> Tensor:
    """`tokens` different slots in any order, the first and the last one among them."""
    last = num_blocks * kind.block_size - 1
    others = [slot for slot in draw.order(last) if slot][: tokens - 2]
    mixed = [0, last, *others][:tokens]
    return torch.tensor([mixed[i] for i in draw.order(tokens)], dtype=torch.int64)


def check_stored(cache: Tensor, rows: Tensor, slots: Tensor, what: str) -> None:
    kept = slots >= 0
    stored = cache[slots[kept] // cache.shape[1], slots[kept] % cache.shape[1]]
    assert view.same_bits(stored, rows[kept]), f"a {what} is not in its slot as it was given"


def test_every_token_lands_in_its_slot(make: Make, seed: int) -> None:
    """Token t's key and value stand in slot slot_mapping[t], for every type, head size and block size."""
    draw = Draw(seed)
    for kind in KINDS:
        num_blocks = max(3, 24 // kind.block_size)
        key, value = drawn(draw, kind, 17)
        slots = slots_of(draw, kind, num_blocks, 17)
        key_cache, value_cache, _ = blank(kind, num_blocks)
        make().store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        check_stored(value_cache, value, slots, "value")


def test_the_slot_minus_one_writes_nowhere(make: Make, seed: int) -> None:
    """A token with slot -1 is skipped: it reaches neither the first slot nor the last nor any other."""
    draw = Draw(seed)
    for kind in (cases.PLAIN, cases.HALF_ODD):
        key, value = drawn(draw, kind, 9)
        key_cache, value_cache, _ = blank(kind, 5)
        slots = slots_of(draw, kind, 5, 9)
        first_and_last = (slots == 0) | (slots == 5 * kind.block_size - 1)
        slots[first_and_last] = -1
        slots[::3] = -1
        make().store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        check_stored(value_cache, value, slots, "value")
        for cache in (key_cache, value_cache):
            rest = view.everywhere_but(cache, slots.tolist())
            assert bool(rest.isnan().all()), "a token with slot -1 was written somewhere"


def test_only_skipped_tokens_change_nothing(make: Make, seed: int) -> None:
    """If every slot is -1 the caches stay as they are; the next call with slots stores again."""
    draw = Draw(seed)
    kind = cases.PLAIN
    key, value = drawn(draw, kind, 6)
    key_cache, value_cache, arenas = blank(kind, 4)
    before = {name: arena.clone() for name, arena in arenas.items()}
    subject = make()
    subject.store_kv(key, value, key_cache, value_cache, torch.full((6,), -1, dtype=torch.int64))
    for name, arena in arenas.items():
        assert view.same_bits(arena, before[name]), "a token with slot -1 was written somewhere"
    slots = slots_of(draw, kind, 4, 6)
    subject.store_kv(key, value, key_cache, value_cache, slots)
    check_stored(key_cache, key, slots, "key")


def test_nothing_but_the_named_slots_is_written(make: Make, seed: int) -> None:
    """Other slots of the caches, and the memory round them, stay as they are."""
    draw = Draw(seed)
    for kind in (cases.PLAIN, cases.SEVENS, cases.PAIRS):
        key, value = drawn(draw, kind, 7)
        key_cache, value_cache, arenas = blank(kind, 6)
        slots = slots_of(draw, kind, 6, 7)
        make().store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        for cache in (key_cache, value_cache):
            rest = view.everywhere_but(cache, slots.tolist())
            assert bool(rest.isnan().all()), "a slot was written that no token names"
        guard = max(cases.GUARD_ELEMENTS, key_cache[0].numel())
        for arena in arenas.values():
            round_it = torch.cat((arena[:guard], arena[-guard:]))
            assert bool((round_it == cases.GUARD).all()), "memory outside of the caches was written"


def test_the_tokens_given_stay_as_they_are(make: Make, seed: int) -> None:
    """store_kv changes neither key nor value nor slot_mapping."""
    draw = Draw(seed)
    kind = cases.PLAIN
    key, value = drawn(draw, kind, 6)
    slots = slots_of(draw, kind, 4, 6)
    slots[2] = -1
    before = (key.clone(), value.clone(), slots.clone())
    key_cache, value_cache, _ = blank(kind, 4)
    make().store_kv(key, value, key_cache, value_cache, slots)
    check_stored(key_cache, key, slots, "key")
    for now, then in zip((key, value, slots), before, strict=True):
        assert view.same_bits(now, then), "an input was written"


def test_keys_and_values_go_by_their_strides(make: Make, seed: int) -> None:
    """Key and value may be views of one tensor with other things between them; slots may be part of a longer list."""
    draw = Draw(seed)
    for kind in (cases.PLAIN, cases.SEVENS):
        fused = draw.normal(8, 2 * kind.kv_heads + 3, kind.head_dim, dtype=kind.dtype)
        key, value = fused[:, 1 : 1 + kind.kv_heads], fused[:, 2 + kind.kv_heads : 2 + 2 * kind.kv_heads]
        longer = torch.full((20,), -1, dtype=torch.int64)
        slots = longer[6:14]
        slots.copy_(slots_of(draw, kind, 4, 8))
        key_cache, value_cache, _ = blank(kind, 4)
        make().store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        check_stored(value_cache, value, slots, "value")


def test_keys_and_values_may_have_other_strides(make: Make, seed: int) -> None:
    """Key may lie in another way than value: heads before tokens, say."""
    draw = Draw(seed)
    kind = cases.PAIRS
    key, value = drawn(draw, kind, 7)
    key = key.transpose(0, 1).contiguous().transpose(0, 1)
    slots = slots_of(draw, kind, 3, 7)
    key_cache, value_cache, _ = blank(kind, 3)
    make().store_kv(key, value, key_cache, value_cache, slots)
    check_stored(key_cache, key, slots, "key")
    check_stored(value_cache, value, slots, "value")


def test_caches_go_by_their_strides(make: Make, seed: int) -> None:
    """The caches may be views of one tensor, have heads before tokens, gaps between rows, or each its own layout."""
    draw = Draw(seed)
    kind = cases.PLAIN
    for form in ("one_tensor", "interleaved", "heads_first", "padded", "unlike"):
        key, value = drawn(draw, kind, 9)
        slots = slots_of(draw, kind, 5, 9)
        key_cache, value_cache, arenas = blank(kind, 5, form)
        guards = {name: arena == cases.GUARD for name, arena in arenas.items()}
        make().store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        check_stored(value_cache, value, slots, "value")
        for name, arena in arenas.items():
            assert bool((arena[guards[name]] == cases.GUARD).all()), "memory outside of the caches was written"


def test_numbers_are_moved_not_computed(make: Make) -> None:
    """Zeros keep their sign, infinities and the smallest numbers stay what they are."""
    odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1.0, 65504.0, -6e-8, 1e-5])
    for kind in (cases.PLAIN, cases.SEVENS):
        key = odd.repeat(kind.head_dim // 8).to(kind.dtype).expand(3, kind.kv_heads, -1).contiguous()
        key_cache, value_cache, _ = blank(kind, 2)
        slots = torch.tensor([5, 0, 2])
        make().store_kv(key, -key, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        check_stored(value_cache, -key, slots, "value")


def test_no_tokens_do_nothing(make: Make, seed: int) -> None:
    """Zero tokens are no error, and nothing is written, neither first nor after others."""
    draw = Draw(seed)
    kind = cases.PLAIN
    key_cache, value_cache, arenas = blank(kind, 2)
    none = torch.zeros(0, kind.kv_heads, kind.head_dim)
    subject = make()
    for tokens in (0, 3):
        key, value = drawn(draw, kind, tokens)
        slots = slots_of(draw, kind, 2, tokens)
        subject.store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        before = {name: arena.clone() for name, arena in arenas.items()}
        subject.store_kv(none, none.clone(), key_cache, value_cache, torch.zeros(0, dtype=torch.int64))
        for name, arena in arenas.items():
            assert view.same_bits(arena, before[name]), "something was written for no tokens"


def test_a_later_token_replaces_an_earlier_one(make: Make, seed: int) -> None:
    """A slot that held a token holds the next one that is written there."""
    draw = Draw(seed)
    kind = cases.HALF_ODD
    key_cache, value_cache, _ = blank(kind, 2)
    subject = make()
    slots = slots_of(draw, kind, 2, 5)
    for _ in range(2):
        key, value = drawn(draw, kind, 5)
        subject.store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        check_stored(value_cache, value, slots, "value")


def test_many_tokens_are_all_stored(make: Make, seed: int) -> None:
    """A whole prompt is stored, whatever number of tokens a program takes."""
    draw = Draw(seed)
    kind = cases.WIDE
    for tokens in (65, 130):
        key, value = drawn(draw, kind, tokens)
        slots = slots_of(draw, kind, 10, tokens)
        key_cache, value_cache, _ = blank(kind, 10)
        make().store_kv(key, value, key_cache, value_cache, slots)
        check_stored(key_cache, key, slots, "key")
        check_stored(value_cache, value, slots, "value")
