"""Every published tensor into the memory that is its own, each exactly once.

Owns: the Protocol `Checkpoint`, what is checked of one, and the filling of a model. Knows nothing of file formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from reference_impl.model.config import ModelConfig
from reference_impl.model.errors import ModelError
from reference_impl.model.transformer import Transformer

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_OLD_BUFFER = "rotary_emb.inv_freq"
"""Early Llama checkpoints carry the frequencies, once a layer; they follow from the configuration."""


class Checkpoint(Protocol):
    """A model in files: what it is, and its tensors under the names of `Transformer.weights`."""

    config: ModelConfig

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name -> shape of every tensor that is there, known without reading any."""

    def read(self, name: str) -> Tensor:
        """One tensor. Raises: ModelError if its data is damaged or not of a floating-point type."""

    def where(self, name: str) -> str:
        """File and tensor, for messages; also of a tensor that is not there."""


def outline(checkpoint: Checkpoint) -> Transformer:
    """The model without memory (torch's `meta` device), once names and shapes are as its configuration says.

    Raises: ModelError naming file and tensor if one is missing, one is left over, or one has another shape. Nothing is
    read and nothing allocated before, so that a configuration that lies costs nothing.
    """
    config, shapes = checkpoint.config, checkpoint.shapes
    last = f"model.layers.{config.num_layers - 1}.input_layernorm.weight"
    if last not in shapes:
        # Looked for first: a billion layers that are not there take long to draw even without memory.
        raise ModelError(f"{checkpoint.where(last)} is missing, and there should be {config.num_layers} layers")
    model = Transformer(config, device="meta")
    wanted = {name: tuple(weight.shape) for name, weight in model.weights()}
    for name, shape in wanted.items():
        if name not in shapes:
            raise ModelError(f"{checkpoint.where(name)} is missing")
        if shapes[name] != shape:
            raise ModelError(f"{checkpoint.where(name)} has shape {shapes[name]}, expected {shape}")
    for name in shapes:
        tied = name == HEAD and config.tied_embeddings
        if name not in wanted and not tied and not name.endswith(_OLD_BUFFER):
            raise ModelError(f"{checkpoint.where(name)} has no place in a {config.architecture} model")
    return model


def load_weights(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> Transformer:
    """The model with every weight, rounded to `dtype`.

    Raises: ModelError as `outline`, and if the device has not the memory. Cost: reads every tensor once; the largest is
    in the host's memory beside the model for a moment.
    """
    parameters = outline(checkpoint).num_parameters
    try:
        transformer = Transformer(checkpoint.config, dtype=dtype, device=device)
    except (RuntimeError, MemoryError):
        need_gib = parameters * dtype.itemsize / 2**30
        what = f"{parameters:,} parameters of {dtype.itemsize} bytes take {need_gib:.2f} GiB"
        raise ModelError(f"{what}, which {device} does not have; try a narrower dtype or a smaller model") from None
    fill(transformer, checkpoint)
    transformer.pack()
    return transformer


def fill(transformer: Transformer, checkpoint: Checkpoint) -> None:
    """Copy every tensor into its place. Names and shapes must be as `outline` wants them."""
    for name, weight in transformer.weights():
        weight.copy_(checkpoint.read(name))
    if HEAD in checkpoint.shapes and checkpoint.config.tied_embeddings:
        _check_tied(checkpoint)


def _check_tied(checkpoint: Checkpoint) -> None:
    """Some checkpoints write a tied head all the same; one that differs was trained, and is not to be ignored."""
    if not torch.equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING)):
        raise ModelError(f"{checkpoint.where(HEAD)} differs from the embedding, though tie_word_embeddings is true")
