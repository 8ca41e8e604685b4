"""A student's lab 4 in the engine: its kernels for the decodes, ours for the rest.

Owns: the call, and the checks around it. Knows nothing of what is inside. The lab's attention has one query token a
sequence, so prompts are computed by `TorchAttention`; every decode and every write into the cache is the student's.
`out` is filled with NaN before each call: what was not written is found in that call and not in a strange answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from labkit.contracts import AttentionBackend
from reference_impl.attention.fp8 import KVScales
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.plugin import ContractError


class Lab4Attention:
    """The `Attention` of `backend.py` by the two functions of lab 4, those of a module or of an object."""

    def __init__(self, backend: AttentionBackend) -> None:
        """Raises: ContractError if one of the functions is missing."""
        for name in ("store_kv", "paged_attention"):
            if not callable(getattr(backend, name, None)):
                raise ContractError(f"{_name(backend)} has no function {name}")
        self.backend = backend
        self._ours = TorchAttention()

    def store_kv(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        *,
        scales: KVScales | None = None,
    ) -> None:
        """As in the contract. Raises: ContractError if the student's function raises, ValueError on scales."""
        _refuse(scales)
        with _told("store_kv"):
            self.backend.store_kv(key, value, key_cache, value_cache, slot_mapping)

    def attend(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        *,
        window: int | None = None,
        scales: KVScales | None = None,
    ) -> Tensor:
        """As in the contract. Raises: ContractError naming the function and what it did, ValueError on a window that
        hides something from a decode, or scales: the lab knows neither.
        """
        _refuse(scales)
        decodes = metadata.num_decodes
        longest = max(metadata.context_tokens[:decodes], default=0)
        if window is not None and longest > window:
            said = f"this model looks at the last {window} tokens only, a sequence has {longest}"
            raise ValueError(f"paged_attention knows no window: {said}; use a model without one, or our attention")
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        out[:decodes] = self._decodes(query[:decodes], key_cache, value_cache, metadata, scale)
        rest = _without_decodes(metadata)
        out[decodes:] = self._ours.attend(query[decodes:], key_cache, value_cache, rest, scale, window=window)
        return out

    def _decodes(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        decodes = metadata.num_decodes
        out = torch.full(query.shape, float("nan"), dtype=query.dtype, device=query.device)
        if not decodes:
            return out
        tables, lens = metadata.block_tables[:decodes], metadata.context_lens[:decodes]
        with _told("paged_attention"):
            self.backend.paged_attention(query, key_cache, value_cache, tables, lens, scale, out)
        if out.shape != query.shape:
            raise ContractError(f"paged_attention made out {tuple(out.shape)}, it was given as {tuple(query.shape)}")
        bad = out.isnan().flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            which = f"{len(bad)} of {decodes} sequences, the first with {metadata.context_tokens[bad[0]]} tokens"
            raise ContractError(f"paged_attention left NaN in out, or did not write it, for {which}")
        return out


def _refuse(scales: KVScales | None) -> None:
    if scales is not None:
        raise ValueError("lab 4 knows no caches of 8-bit floats: use caches of the model's type, or our attention")


def _without_decodes(metadata: AttentionMetadata) -> AttentionMetadata:
    """The sequences with more query tokens, and the pads, as a batch of their own: the same one for every layer."""
    key = (Lab4Attention, "rest")
    if key not in metadata.worked_out:
        decodes = metadata.num_decodes
        metadata.worked_out[key] = replace(
            metadata,
            slot_mapping=metadata.slot_mapping[decodes:],
            block_tables=metadata.block_tables[decodes:],
            context_lens=metadata.context_lens[decodes:],
            cu_seqlens=metadata.cu_seqlens[decodes:] - decodes,
            query_tokens=metadata.query_tokens[decodes:],
            context_tokens=metadata.context_tokens[decodes:],
            num_decodes=0,
            worked_out={},
        )
    rest: AttentionMetadata = metadata.worked_out[key]
    return rest


@contextmanager
def _told(function: str) -> Iterator[None]:
    """What the student's code raises, in one line that names the function."""
    try:
        yield
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else "no message"
        raise ContractError(f"{function} raised {type(error).__name__}: {text}") from error


def _name(backend: object) -> str:
    return str(getattr(backend, "__name__", type(backend).__name__))
