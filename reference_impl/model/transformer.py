"""The whole model: token ids in, logits out, keys and values in paged memory on the way.

Owns: embedding, layers, last norm and head. Knows nothing of where weights come from (`loader.py`), of sequences (they
are in the `AttentionMetadata`) or of which token is chosen. There is no state between two calls but in the caches, and
no padding: the tokens of all sequences lie end to end.

Only the rows that a token is chosen from go through the last norm and the head: of a prefill's hundreds of tokens one.
With SmolLM2's 49,152 words the head costs as much as ten layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from reference_impl.attention.backend import Attention, LayerCache
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.model.config import ModelConfig
from reference_impl.model.layer import Layer
from reference_impl.model.linear import Linear
from reference_impl.model.ops import Ops, RMSNorm, ops_for
from reference_impl.model.rope import Rotary


class Transformer:
    """A decoder-only model. Its weights are whatever the memory held until they are filled through `weights()`.

    num_parameters: numbers in the weights; tied ones count once. weight_bytes: what they take, copies included.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        ops: Ops | None = None,
    ) -> None:
        """ops: who computes what lies between the products; the fastest for the device unless given.

        Raises: RuntimeError, of torch, if the device is not there or has not the memory.
        """
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.ops = ops or ops_for(self.device)
        self.embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype, device=self.device)
        self.head = Linear(
            config.hidden_size,
            {"lm_head": config.vocab_size},
            bias=False,
            dtype=dtype,
            device=self.device,
            weight=self.embedding if config.tied_embeddings else None,
        )
        self.layers = [
            Layer(config, index, self.ops, dtype=dtype, device=self.device) for index in range(config.num_layers)
        ]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype, device=self.device)
        self.rotary = Rotary(config.rope, config.head_dim, dtype=dtype, device=self.device)
        self.num_parameters = sum(weight.numel() for _, weight in self.weights())
        self.weight_bytes = self.num_parameters * dtype.itemsize

    def pack(self) -> None:
        """After the last weight was filled: see `Layer.pack`. Costs a second copy of a tied head's matrix."""
        for layer in self.layers:
            layer.pack()
        if self.head.pack() and self.config.tied_embeddings:
            self.weight_bytes += self.embedding.nbytes

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under the name that Hugging Face's checkpoints give it -> the memory to fill.

        Raises: RuntimeError once they are packed.
        """
        yield "model.embed_tokens.weight", self.embedding
        for index, layer in enumerate(self.layers):
            yield from ((f"model.layers.{index}.{name}", weight) for name, weight in layer.weights())
        yield "model.norm.weight", self.norm.weight
        if not self.config.tied_embeddings:
            yield from self.head.weights()

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        caches: Sequence[LayerCache],
        metadata: AttentionMetadata,
        attention: Attention,
        logit_rows: Tensor | None,
        *,
        logits_dtype: torch.dtype = torch.float32,
        logits_out: Tensor | None = None,
    ) -> Tensor:
        """Logits [rows, vocab_size] of the tokens at the places `logit_rows` [rows] of the batch; None: of all tokens.

        token_ids, positions: [tokens] int32 or int64, of all sequences end to end, then pads. caches: each layer's
        key_cache and value_cache, with scales if they are of 8-bit floats; the tokens' keys and values are written into
        the slots that `metadata` names.
        logits_dtype: the model's own spares a copy, and is all the precision that there is.
        logits_out: memory for what the head gives, [rows, vocab_size] of the model's type.
        The device is not waited for, so that a graph can hold all of it.
        Raises: ValueError on counts that do not go together, IndexError (on a CPU) on an unknown token id.
        Cost: O(tokens * parameters), and attention.
        """
        self._check(token_ids, positions, caches, metadata)
        hidden = functional.embedding(token_ids, self.embedding)  # [tokens, hidden_size], ours to change
        turn = self.ops.turn(self.rotary, positions)
        for layer, (key_cache, value_cache, *scales) in zip(self.layers, caches, strict=True):
            layer.forward(hidden, turn, key_cache, value_cache, metadata, attention, *scales)
        last = hidden if logit_rows is None else hidden[logit_rows]
        return self.head(self.ops.norm(last, self.norm), logits_out).to(logits_dtype)

    def _check(
        self, token_ids: Tensor, positions: Tensor, caches: Sequence[LayerCache], metadata: AttentionMetadata
    ) -> None:
        tokens = metadata.num_tokens
        if token_ids.shape != (tokens,) or positions.shape != (tokens,):
            shapes = f"{tuple(token_ids.shape)} and positions of shape {tuple(positions.shape)}"
            raise ValueError(f"token_ids of shape {shapes} do not go with {tokens} tokens of metadata")
        if len(caches) != len(self.layers):
            raise ValueError(f"{len(caches)} caches for {len(self.layers)} layers")
