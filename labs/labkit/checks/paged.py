"""What the properties of lab 4 give to attention, and what they may conclude from what it wrote.

Owns: batches over a cache with blocks in any order, the poison around them, the attention of the definition in float64,
and how a difference is told: which sequence, which head, what was expected and what was found. Knows nothing of how a
kernel works. torch is imported where it is used: the names of the properties are known without it.
Cost: each batch is a few kilobytes; the definition takes O(tokens * heads * head_dim).
Source: Vaswani et al., NeurIPS 2017, section 3.2; Kwon et al., SOSP 2023, section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from labkit.checks.story import Broken, Make, NotWritten, counted, error_of, shown, unwritten
from labkit.gpu import device

if TYPE_CHECKING:
    from torch import Tensor

GUARD_BLOCKS = 2
"""Blocks before and behind the cache that belong to nobody, at least: an address that is a little wrong ends there."""
GUARD_HEADS = 64
"""Rows of heads before and behind `out`, at least."""
GUARD_TOKENS = 64
"""And slots, at least: somebody may take blocks to be larger than they are."""
ERRORS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Relative L2 error over `out`; in a row, one head of one sequence, 4 times that."""
NAN = float("nan")
_FARTHEST = 1e300
"""In place of a NaN where the largest difference is looked for."""


@dataclass
class Batch:
    """What `paged_attention` is given, and how to tell it. Slots that hold no token of a context hold the poison."""

    told: str
    lengths: list[int]
    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor
    scale: float

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The tensors that must stay as they are, by name."""
        names = ("query", "key_cache", "value_cache", "block_tables", "context_lens")
        return {name: getattr(self, name) for name in names}

    def broken(self, expected: str) -> NoReturn:
        """Tell the counterexample."""
        raise Broken(f"With {self.told}: expected {expected}.")


Fill = Callable[[int, "Tensor"], "Tensor"]
"""Takes a sequence and the drawn numbers [tokens, kv_heads, head_dim] of its keys or values; gives others."""


def batch(
    lengths: Sequence[int],
    *,
    heads: int = 2,
    kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 4,
    dtype: str = "float32",
    scale: float | None = None,
    poison: float = NAN,
    unused: int = -1,
    seed: int = 0,
    order: int = 0,
    block_zero_is_free: bool = False,
    queries: Callable[[Tensor], Tensor] | None = None,
    keys: Fill | None = None,
    values: Fill | None = None,
) -> Batch:
    """A batch with one context for each of `lengths`, in blocks that lie in random order, by the seed `order`.

    The numbers of a token depend on `seed` only, not on where it lies. poison: what all other slots hold, those of
    free blocks too. unused: the table entries behind a context. block_zero_is_free: else it may be anybody's. Keys and
    values lie in one tensor, so that no stride is what it would be alone.
    """
    import torch

    number_type = getattr(torch, dtype)
    draw = torch.Generator().manual_seed(seed)
    blocks = [-(-length // block_size) for length in lengths]
    num_blocks = sum(blocks) + 2
    places = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(order)).to(torch.int32)
    if block_zero_is_free:
        places = torch.cat((places[places != 0], places[places == 0]))
    guard = max(GUARD_BLOCKS, -(-GUARD_TOKENS // block_size))
    memory = torch.full((num_blocks + 2 * guard, 2, block_size, kv_heads, head_dim), poison, dtype=number_type)
    caches = memory[guard:-guard]
    rows, width = len(lengths), max([0, *blocks]) + 2
    # Behind the last table as many entries as there are tokens: whatever size somebody takes blocks to have.
    entries = torch.full((rows * width + max([0, *lengths]) + 16,), unused, dtype=torch.int32)
    tables = entries[: rows * width].view(rows, width)
    for row, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        tables[row, :count], places = places[:count], places[count:]
        for side, fill in enumerate((keys, values)):
            numbers = torch.randn(length, kv_heads, head_dim, generator=draw, dtype=torch.float64)
            numbers = fill(row, numbers) if fill else numbers
            at = torch.arange(length)
            caches[tables[row, at // block_size].long(), side, at % block_size] = numbers.to(number_type)
    query = torch.randn(len(lengths), heads, head_dim, generator=draw, dtype=torch.float64)
    query = queries(query) if queries else query
    memory = memory.to(device())
    caches = memory[guard:-guard]
    return Batch(
        _told(lengths, heads, kv_heads, head_dim, block_size, dtype),
        list(lengths),
        query.to(device(), number_type),
        caches[:, 0],
        caches[:, 1],
        entries.to(device())[: rows * width].view(rows, width),
        torch.tensor(list(lengths), dtype=torch.int32, device=device()),
        head_dim**-0.5 if scale is None else scale,
    )


def _told(lengths: Sequence[int], heads: int, kv_heads: int, head_dim: int, block_size: int, dtype: str) -> str:
    shown = ", ".join(map(str, lengths)) if len(lengths) < 12 else f"{min(lengths)} to {max(lengths)}"
    contexts = f"{counted(len(lengths), 'sequence')} of {shown} tokens" if lengths else "no sequence"
    over = f"{counted(heads, 'query head')} over {counted(kv_heads, 'KV head')} of {head_dim} numbers"
    return f"{contexts} in blocks of {block_size}, {over}, {dtype}"


def definition(given: Batch) -> Tensor:
    """[batch, heads, head_dim] float64 on the CPU: softmax(query . key * scale) . value, sequence by sequence."""
    import torch

    block_size, kv_heads = given.key_cache.shape[1], given.key_cache.shape[2]
    query = given.query.double().cpu()
    sharing = query.shape[1] // kv_heads
    answer = torch.zeros(query.shape, dtype=torch.float64)
    for row, length in enumerate(given.lengths):
        at = torch.arange(length)
        place = given.block_tables[row].cpu()[at // block_size].long(), at % block_size
        key = given.key_cache.cpu()[place].double().repeat_interleave(sharing, 1)
        value = given.value_cache.cpu()[place].double().repeat_interleave(sharing, 1)
        if length:
            share = torch.softmax(torch.einsum("hd,thd->ht", query[row], key) * given.scale, dim=1)
            answer[row] = torch.einsum("ht,thd->hd", share, value)
    return answer


def guarded_out(given: Batch) -> tuple[Tensor, Tensor]:
    """Memory full of NaN, and the rows in its middle that are `out` for the batch, as many before as behind.

    Who stores whole tiles of heads writes here, and not into what this process lives on.
    """
    import torch

    rows, heads, head_dim = given.query.shape
    spare = -(-GUARD_HEADS // heads)
    around = torch.full((rows + 2 * spare, heads, head_dim), NAN, dtype=given.query.dtype, device=given.query.device)
    return around, around[spare : spare + rows]


def attend(make: Make, given: Batch, out: Tensor | None = None) -> Tensor:
    """What `paged_attention` writes for the batch. `out` holds NaN before, so that what is not written shows.

    Broken if something was written before or behind it, unless `out` is the caller's.
    """
    if out is not None:
        call(make, "paged_attention", given.told, *given.inputs.values(), given.scale, out)
        return out
    around, out = guarded_out(given)
    call(make, "paged_attention", given.told, *given.inputs.values(), given.scale, out)
    spare = (len(around) - len(out)) // 2
    if not bool(around[:spare].isnan().all() & around[spare + len(out) :].isnan().all()):
        given.broken("nothing to be written beside out, but something was")
    return out


def call(make: Make, function: str, told: str, *args: Any) -> None:
    """Call one of the functions. NotWritten if it, or a kernel that it starts, is a stub; Broken if it raises."""
    try:
        getattr(make(), function)(*args)
    except Exception as raised:
        stub = _stub_in(raised, function)
        if stub:
            raise NotWritten(stub) from None
        raise Broken(f"With {told}: expected {function} to return, got {_first_cause(raised)}.") from None


def _stub_in(raised: BaseException | None, function: str) -> str:
    """The function or kernel that is still a stub; empty if the error has another reason."""
    # Triton's interpreter wraps what a kernel raises; its compiler shows the line that it cannot compile.
    while raised is not None:
        if isinstance(raised, NotImplementedError):
            return unwritten(raised, function)
        if "raise NotImplementedError" in str(raised):
            shown = re.search(r"def (\w+)\(", str(raised))
            return shown[1] if shown else function
        raised = raised.__cause__ or raised.__context__
    return ""


def _first_cause(raised: Exception) -> str:
    innermost: BaseException = raised
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    # Triton's compiler shows a dozen lines of source first, and says what is wrong with the last of them behind it.
    said, source = getattr(innermost, "error_message", None), getattr(innermost, "src", None)
    number = getattr(getattr(innermost, "node", None), "lineno", None)
    if not (isinstance(said, str) and said and isinstance(source, str) and isinstance(number, int)):
        return error_of(innermost)
    line = source.splitlines()[number - 1].strip()
    return f"{type(innermost).__name__}: {shown(said)} at {shown(line)}"


def check_near(given: Batch, out: Tensor, want: Tensor | None = None) -> None:
    """Broken, with the first row that is too far off, unless `out` is `want`: the definition, if none is given."""
    want = definition(given) if want is None else want.double().cpu()
    found = out.detach().double().cpu()
    limit = ERRORS[str(out.dtype).removeprefix("torch.")]
    missed = (found - want).norm(dim=-1)
    size = want.norm(dim=-1)
    # Absolute where zeros are due. A NaN is no error below any limit.
    bad = ~(missed <= 4 * limit * size.where(size > 0, size.new_ones(())))
    if bool(bad.any()):
        row, head = (int(place) for place in bad.nonzero()[0])
        _tell(given, found, want, row, head, f"{int(bad.sum())} of {bad.numel()} rows are wrong, the first is")
    if missed.numel() and float(missed.norm()) > limit * max(float(size.norm()), 1e-30):
        row, head = divmod(int(missed.flatten().argmax()), missed.shape[1])
        error = float(missed.norm() / size.norm())
        _tell(given, found, want, row, head, f"an error of {error:.1e} is above {limit:.0e}, the worst row is")


def _tell(given: Batch, found: Tensor, want: Tensor, row: int, head: int, which: str) -> NoReturn:
    gap = (found[row, head] - want[row, head]).abs().nan_to_num(_FARTHEST)
    at = int(gap.argmax())
    got, due = float(found[row, head, at]), float(want[row, head, at])
    hint = " (out and all slots without a token of the context held nan before the call)" if got != got else ""
    given.broken(
        f"number {at} of sequence {row} ({counted(given.lengths[row], 'token')}), query head {head} to be {due:.6g}, "
        f"got {got:.6g}{hint}; {which} this one"
    )


def same_bits(one: Tensor, other: Tensor) -> Tensor:
    """Whether each number is the same, a NaN like another: bool, in their shape."""
    return (one == other) | (one.isnan() & other.isnan())
