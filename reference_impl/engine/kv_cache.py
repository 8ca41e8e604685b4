"""The memory that block ids stand for: keys and values of every layer, on the device and on the host.

Owns: the tensors, and moves of whole blocks within them. Knows nothing of which block is whose (`memory`) or of when
anything is moved (`runner.py`).

    device   [layers, key or value, kv_heads, num_blocks, block_size, head_dim]     one tensor
    layer    [num_blocks, block_size, kv_heads, head_dim]                           a view of it, as attention asks

How the numbers lie within a layer is another matter. Heads outermost: the tokens of a block are one piece for each
head, and torch's products, which take one head's blocks at a time, need no copy. Heads within tokens: a block is one
piece for all heads, which the programs of a GPU, a head each, read side by side. Because all layers are one tensor, a
move is one read and one write for all of them, whatever the number of layers.
Cost: a move reads and writes each block once, and holds a copy of what it moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference_impl.attention.backend import LayerCache
from reference_impl.attention.fp8 import FP8, KVScales, as_bytes
from reference_impl.memory.contiguous import at_least_one
from reference_impl.model.config import ModelConfig

Pairs = Sequence[tuple[int, int]]
"""Blocks (src, dst)."""

_BLOCKS = 3
"""The dimension in which blocks are counted."""


_CACHE_LINE_BYTES = 128
"""Of NVIDIA's GPUs."""


def heads_outermost(head_bytes: int, device: torch.device) -> bool:
    """Whether a head's tokens lie together on `device`, where a token has `head_bytes` for each head.

    On a CPU, and where a row is not whole cache lines: of two heads side by side each would read some of the other's.
    """
    return device.type != "cuda" or head_bytes % _CACHE_LINE_BYTES != 0


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """What one block takes, in all layers."""
    return block_size * config.kv_bytes_per_token(dtype.itemsize)


class KVCache:
    """`num_blocks` blocks on `device` and `num_host_blocks` on the host, each of `block_size` tokens.

    scales: one for each layer makes the blocks of 8-bit floats, whatever the dtype, and goes with its layer.
    poison: slots that were never written hold NaN instead of 0, so that reading one shows in the answer. Memory of the
    operating system is not taken before it is written, except with poison.
    heads_first: how the numbers lie, see the module; as `heads_outermost` says unless given.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        num_host_blocks: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        poison: bool = False,
        scales: Sequence[KVScales] | None = None,
        heads_first: bool | None = None,
    ) -> None:
        """Raises: ValueError, naming the number, on sizes that make no sense or that the device has no memory for."""
        if scales is not None:
            dtype = FP8
            if len(scales) != config.num_layers:
                raise ValueError(f"{len(scales)} scales for {config.num_layers} layers: need one for each")
        self.num_blocks = at_least_one("num_blocks", num_blocks)
        self.block_size = at_least_one("block_size", block_size)
        if num_host_blocks < 0:
            raise ValueError(f"num_host_blocks must be at least 0, got {num_host_blocks}")
        self.num_host_blocks = num_host_blocks
        self.block_bytes = block_bytes(config, block_size, dtype)
        if heads_first is None:
            heads_first = heads_outermost(config.head_dim * dtype.itemsize, torch.device(device))
        self._heads_first = heads_first
        self._device = self._memory(config, num_blocks, dtype, torch.device(device), poison)
        self._host = self._memory(config, num_host_blocks, dtype, torch.device("cpu"), poison)
        if self._device.is_cuda and num_host_blocks:
            self._host = self._host.pin_memory()
        views = self._device.permute(0, 1, 3, 4, 2, 5)
        self.layers: list[LayerCache] = [(layer[0], layer[1]) for layer in views]
        if scales is not None:
            self.layers = [(layer[0], layer[1], by) for layer, by in zip(views, scales, strict=True)]

    def _memory(
        self, config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device, poison: bool
    ) -> Tensor:
        halves, heads, tokens = (config.num_layers, 2), (config.num_kv_heads,), (num_blocks, self.block_size)
        size = (*halves, *heads, *tokens) if self._heads_first else (*halves, *tokens, *heads)
        try:
            memory = torch.zeros(*size, config.head_dim, dtype=dtype, device=device)
        except RuntimeError as error:
            wanted = f"{num_blocks * self.block_bytes} bytes for {num_blocks} blocks of {self.block_size} tokens"
            raise ValueError(f"{device} has no {wanted}: ask for less KV memory") from error
        if poison:
            memory.fill_(float("nan"))
        return memory if self._heads_first else memory.permute(0, 1, 4, 2, 3, 5)

    @property
    def num_bytes(self) -> int:
        """Of all blocks on the device."""
        return self._device.nbytes

    @property
    def num_host_bytes(self) -> int:
        """Of all blocks on the host."""
        return self._host.nbytes

    def copy(self, pairs: Pairs) -> None:
        """Copy blocks on the device; every source is read before anything is written.

        Raises: ValueError, with nothing changed, on a block that is not there, or a destination named twice.
        """
        self._move(pairs, self._device, self._device)

    def swap_out(self, pairs: Pairs) -> None:
        """Copy blocks (device, host). Errors as `copy`."""
        self._move(pairs, self._device, self._host)

    def swap_in(self, pairs: Pairs) -> None:
        """Copy blocks (host, device). Errors as `copy`."""
        self._move(pairs, self._host, self._device)

    def _move(self, pairs: Pairs, source: Tensor, target: Tensor) -> None:
        if not pairs:
            return
        read, written = zip(*pairs, strict=True)
        self._check(read, source, "source")
        self._check(written, target, "destination")
        if len(set(written)) != len(written):
            raise ValueError(f"a block stands twice among the destinations of {list(pairs)}")
        if source.dtype == FP8:
            source, target = as_bytes(source), as_bytes(target)
        moved = source.index_select(_BLOCKS, torch.tensor(read, device=source.device))
        places = torch.tensor(written, device=target.device)
        target.index_copy_(_BLOCKS, places, moved.to(target.device))

    def _check(self, blocks: Sequence[int], memory: Tensor, role: str) -> None:
        where = "the device" if memory is self._device else "the host"
        count = memory.shape[_BLOCKS]
        if min(blocks) < 0 or max(blocks) >= count:
            wrong = next(block for block in blocks if not 0 <= block < count)
            raise ValueError(f"{role} {wrong} is no block of {where}, which has {count}")
