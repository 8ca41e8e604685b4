"""Wrong kernels, each a small change to the model solution and named after the belief behind it.

Owns: the mistakes with which the public checks of lab 4 are tested: which cell is changed, how, and the (group,
property) that must notice. None of them reads or writes beyond the guards of the checks: they run in this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """Replacements in a cell of the notebook, and the property that notices. hand_in: which version is called."""

    group: str
    prop: str
    cell: str
    changes: tuple[tuple[str, str], ...]
    hand_in: str = "split"

    def cells(self, sources: Mapping[str, str]) -> dict[str, str]:
        """The changed cells. Raises: AssertionError if what is to be replaced is not there."""
        text = sources[self.cell]
        for old, new in self.changes:
            assert old in text, f"{self.cell} has no {old!r}"
            text = text.replace(old, new)
        handed = sources["hand_in"].replace("    split(", f"    {self.hand_in}(")
        return {self.cell: text, "hand_in": handed}


def _store(prop: str, *changes: tuple[str, str]) -> Mistake:
    return Mistake("store_kv", prop, "write_store_kv", changes)


def _one_head(group: str, prop: str, *changes: tuple[str, str]) -> Mistake:
    return Mistake(group, prop, "one_head", changes, "one_head")


def _grouped(group: str, prop: str, *changes: tuple[str, str]) -> Mistake:
    return Mistake(group, prop, "grouped", changes)


def _split(group: str, prop: str, *changes: tuple[str, str]) -> Mistake:
    return Mistake(group, prop, "split", changes)


MASKED_VALUE = ("value = tl.load(from_value, mask=there[:, None], other=0.0)", "value = tl.load(from_value)")
EMPTY = "    if batch == 0:\n        return\n"
SCRATCH = "scratch = torch.empty(batch, heads, parts, head_dim, "
STORE = "    _store_kv[(tokens,)]("
SCATTERED = """\
    kept = slot_mapping >= 0
    at = slot_mapping[kept] // key_cache.shape[1], slot_mapping[kept] % key_cache.shape[1]
    key_cache[at], value_cache[at] = key[kept], value[kept]
    return
"""
COPIED = """\
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            at = divmod(slot, key_cache.shape[1])
            key_cache[at].copy_(key[token])
            value_cache[at].copy_(value[token])
    return
"""
MISTAKES: dict[str, Mistake] = {
    # store_kv
    "offset_of_the_token_not_of_the_slot": _store(
        "every_token_lands_in_its_slot", ("slot % BLOCK_SIZE", "token % BLOCK_SIZE")
    ),
    "heads_have_32_numbers": _store("all_heads_and_numbers_are_written", ("(dim < DIM)", "(dim < 32)")),
    "minus_one_is_the_last_slot": _store("a_slot_of_minus_one_writes_nowhere", ("slot >= 0", "slot >= -1")),
    "blocks_have_4_tokens": _store(
        "blocks_of_any_size_take_tokens", ("slot // BLOCK_SIZE, slot % BLOCK_SIZE", "slot // 4, slot % 4")
    ),
    "one_program_writes_all": _store("any_number_of_tokens_is_written", ("[(tokens,)]", "[(min(tokens, 64),)]")),
    "values_lie_like_keys": _store("keys_and_values_go_by_their_strides", ("*value.stride()[:2]", "*key.stride()[:2]")),
    "through_a_narrow_type": _store(
        "bits_are_copied", ("head * key_head + dim, mask=there)", "head * key_head + dim, mask=there) * 1.001")
    ),
    "keys_are_used_up": _store(
        "what_is_written_is_not_changed", ("DIM=head_dim,\n    )\n", "DIM=head_dim,\n    )\n    key.zero_()\n")
    ),
    "torch_writes_the_slots": _store("the_kernels_write_the_slots", (STORE, SCATTERED + STORE)),
    "copies_are_no_kernels": _store("the_kernels_write_the_slots", (STORE, COPIED + STORE)),
    # decode
    "one_more_in_the_sum": _one_head(
        "decode", "one_token_gives_its_value", ("found / tl.where(total == 0.0, 1.0, total)", "found / (total + 1.0)")
    ),
    "weights_are_not_normalised": _one_head(
        "decode",
        "a_query_of_zeros_gives_the_mean_of_the_values",
        ("found / tl.where(total == 0.0, 1.0, total)", "found"),
    ),
    "powers_of_two_are_powers_of_e": _grouped(
        "decode",
        "tokens_are_weighed_by_the_softmax_of_their_scores",
        ("score - higher[:, None]", "(score - higher[:, None]) * 1.44"),
    ),
    "block_sizes_are_powers_of_two": _split(
        "decode", "blocks_may_have_any_size", ("BLOCK_SIZE=block_size", "BLOCK_SIZE=triton.next_power_of_2(block_size)")
    ),
    "nothing_to_do_for_an_empty_context": _split(
        "decode", "an_empty_context_gives_zeros", ("(start < length) | (part == 0)", "start < length")
    ),
    "the_scale_is_always_the_same": _split(
        "decode", "the_scale_is_the_callers", ("scale * 1.44", "head_dim**-0.5 * 1.44")
    ),
    "zeros_by_a_mask_of_torch": _split(
        "decode", "the_kernels_compute_the_answer", (EMPTY, f"{EMPTY}    out[context_lens == 0] = 0\n")
    ),
    "blocks_counted_with_a_division_of_floats": _split(
        "decode",
        "the_kernels_compute_the_answer",
        (EMPTY, f"{EMPTY}    torch.ceil(context_lens / key_cache.shape[1])\n"),
    ),
    # head_groups
    "heads_by_modulo": _one_head(
        "head_groups",
        "query_head_h_reads_kv_head_h_over_group",
        ("kv_head = head // group", "kv_head = head % (tl.num_programs(1) // group)"),
    ),
    "groups_are_powers_of_two": _split(
        "head_groups", "groups_may_have_any_size", ("head, kept = kv_head * GROUP", "head, kept = kv_head * ROWS")
    ),
    "four_heads_are_enough": _split(
        "head_groups",
        "all_query_heads_may_share_one_kv_head",
        ("min(64, ", "min(4, "),
        ("lanes = kv_heads * triton.cdiv(group, rows)", "lanes = kv_heads"),
        ("pieces: tl.constexpr = (GROUP + ROWS - 1) // ROWS", "pieces: tl.constexpr = 1"),
    ),
    # ragged_tails
    "one_token_too_many": _grouped(
        "ragged_tails", "lengths_around_a_block_boundary", ("there = token < stop", "there = token <= stop")
    ),
    "a_weight_of_zero_is_mask_enough": _grouped("ragged_tails", "slots_behind_the_context_do_not_matter", MASKED_VALUE),
    "a_block_more_does_no_harm": _one_head(
        "ragged_tails",
        "table_entries_behind_the_context_are_no_addresses",
        ("range(0, length, BLOCK_SIZE)", "range(0, length + BLOCK_SIZE, BLOCK_SIZE)"),
        MASKED_VALUE,
    ),
    "the_table_is_the_context": _one_head(
        "ragged_tails",
        "a_table_may_be_wider_than_any_context",
        ("length = tl.load(context_lens + row)", "length = table_row * BLOCK_SIZE"),
    ),
    # numerics
    "no_maximum": _one_head(
        "numerics", "large_scores_do_not_overflow", ("higher = tl.maximum(top, tl.max(score, 0))", "higher = 0.0")
    ),
    "the_maximum_starts_at_zero": _one_head(
        "numerics", "scores_far_below_zero_do_not_vanish", ('top, total = -float("inf"), 0.0', "top, total = 0.0, 0.0")
    ),
    "what_was_summed_stays": _one_head(
        "numerics", "a_late_maximum_rescales_what_came_before", ("found = found * fade + ", "found = found + ")
    ),
    "sums_in_float16": _one_head(
        "numerics",
        "float16_is_summed_in_float32",
        (
            "found = found * fade + tl.sum(weight[:, None] * value, 0)",
            "found = (found * fade + tl.sum(weight[:, None] * value, 0)).to(tl.float16).to(tl.float32)",
        ),
    ),
    "products_in_float16": _one_head(
        "numerics",
        "float16_products_are_summed_in_float32",
        ("head * query_head + dim).to(tl.float32)", "head * query_head + dim)"),
        (
            "key = tl.load(from_key, mask=there[:, None], other=0.0).to(tl.float32)",
            "key = tl.load(from_key, mask=there[:, None], other=0.0)",
        ),
        ("tl.sum(numbers[None, :] * key, 1) * scale", "tl.sum(numbers[None, :] * key, 1).to(tl.float32) * scale"),
    ),
    "weights_counted_in_float16": _one_head(
        "numerics",
        "float16_weights_are_summed_in_float32",
        (
            "total = total * fade + tl.sum(weight, 0)",
            "total = (total * fade + tl.sum(weight, 0)).to(tl.float16).to(tl.float32)",
        ),
    ),
    "sixteen_bits_are_enough": _one_head(
        "numerics",
        "float32_keeps_its_precision",
        ("head * query_head + dim).to(tl.float32)", "head * query_head + dim).to(tl.float16).to(tl.float32)"),
    ),
    # layout
    "blocks_lie_in_order": _one_head(
        "layout",
        "the_order_of_blocks_in_memory_does_not_matter",
        ("block = tl.load(block_tables + row * table_row + first // BLOCK_SIZE)", "block = (first // BLOCK_SIZE)"),
        (".to(tl.int64)\n        there", "\n        there"),
    ),
    "values_lie_as_keys_would_alone": _split(
        "layout", "caches_go_by_their_strides", ("*value_cache.stride()[:3]", "*value_cache.contiguous().stride()[:3]")
    ),
    "out_is_contiguous": _split(
        "layout", "rows_of_query_out_and_tables_may_lie_apart", ("*out.stride()[:2]", "heads * head_dim, head_dim")
    ),
    "the_query_is_scaled_in_place": _split(
        "layout",
        "inputs_stay_as_they_are",
        (EMPTY, f"{EMPTY}    query.mul_(scale)\n    scale = 1.0\n"),
    ),
    "there_is_always_a_sequence": _split(
        "layout",
        "an_empty_batch_does_nothing",
        (EMPTY, '    if batch == 0:\n        raise ValueError("no sequence")\n'),
    ),
    # split_kv
    "the_first_part_is_all": _split(
        "split_kv", "long_contexts_are_right", ("count = tl.cdiv(length, part_tokens)", "count = 1")
    ),
    "all_parts_were_written": _split(
        "split_kv",
        "lengths_far_apart_are_right_together",
        (SCRATCH, SCRATCH.replace("empty(", "full((").replace(", head_dim, ", ", head_dim), float('nan'), ")),
        ("part < count", "part < parts"),
        ("if length > part_tokens:", "if length >= 0:"),
    ),
    "parts_are_averaged": _split(
        "split_kv", "each_part_counts_by_its_weight", ("tl.exp2(logarithm - higher)", "tl.where(there, 1.0, 0.0)")
    ),
    "the_last_part_wins": _split(
        "split_kv",
        "the_largest_score_may_stand_anywhere",
        ("found = found * fade + tl.sum", "found = tl.sum"),
        ("TOGETHER=16", "TOGETHER=1"),
    ),
    # bandwidth
    "three_sequences_at_most": _split(
        "bandwidth_equal",
        "a_batch_of_equal_lengths_is_right",
        ("(lanes, batch, parts)", "(lanes, min(batch, 3), parts)"),
    ),
    "short_ones_wait": _split(
        "bandwidth_unequal",
        "a_batch_of_unequal_lengths_is_right",
        ("(lanes, batch, parts)", "(lanes, min(batch, 3), parts)"),
    ),
    # the steps on the way
    "a_partial_without_its_maximum": Mistake(
        "warm_up_merge",
        "a_partial_is_attention_over_its_tokens",
        "merge",
        (("return top, weights", "return top * 0, weights"),),
    ),
    "merged_without_fading": Mistake(
        "warm_up_merge", "two_partials_merge_to_the_whole", "merge", (("one[2] * fade", "one[2]"),)
    ),
    "the_last_maximum": Mistake(
        "warm_up_merge", "block_after_block_is_the_whole", "merge", (("torch.maximum(one[0], other[0])", "other[0]"),)
    ),
    "nothing_minus_nothing": Mistake(
        "warm_up_merge",
        "nothing_merged_changes_nothing",
        "merge",
        (('shift = top if top > float("-inf") else torch.zeros_like(top)', "shift = top"),),
    ),
    "merged_without_a_maximum": Mistake(
        "warm_up_merge",
        "scores_of_any_size_merge",
        "merge",
        (("torch.exp(one[0] - shift), torch.exp(other[0] - shift)", "torch.exp(one[0]), torch.exp(other[0])"),),
    ),
    "programs_for_kv_heads_always": Mistake(
        "counted_work",
        "one_head_reads_the_cache_once_for_each_query_head",
        "work",
        (('heads if version == "one_head" else kv_heads', "kv_heads"),),
    ),
    "programs_for_query_heads_always": Mistake(
        "counted_work",
        "grouped_reads_the_cache_once",
        "work",
        (('heads if version == "one_head" else kv_heads', "heads"),),
    ),
    "parts_are_rounded_down": Mistake(
        "counted_work", "split_bounds_the_longest_walk", "work", (("-(-length // part)", "length // part"),)
    ),
    "a_program_for_nothing": Mistake(
        "counted_work",
        "a_context_of_no_token_has_no_work",
        "work",
        (("-(-length // part)", "max(1, -(-length // part))"),),
    ),
    "walks_without_the_table": Mistake(
        "warm_up_walk",
        "tokens_are_weighed_by_the_softmax_of_their_scores",
        "page_walk",
        (("block_tables[row, token // block_size].long()", "token // block_size"),),
    ),
    "grouped_loads_one_head": _grouped(
        "version_grouped", "groups_may_have_any_size", ("kept = (member < GROUP)", "kept = (member < 1)")
    ),
    "one_head_walks_the_first_block": _one_head(
        "version_one_head",
        "lengths_around_a_block_boundary",
        ("range(0, length, BLOCK_SIZE)", "range(0, tl.minimum(length, BLOCK_SIZE), BLOCK_SIZE)"),
    ),
    "split_makes_the_first_part": _split(
        "version_split", "lengths_far_apart_are_right_together", ("count = tl.cdiv(length, part_tokens)", "count = 1")
    ),
}
