"""GPUs and models in the few numbers that a step's time depends on.

Owns: the presets, from data sheets and from the models' published configurations. Knows nothing of time: how the
numbers become seconds is in `cost.py`. Peaks are dense bf16 with 32-bit accumulation; a link is one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

from reference_impl.padding.account import ModelShape


@dataclass(frozen=True)
class Device:
    """One GPU: what its memory, its tensor cores and its way to the host can do at most."""

    name: str
    bytes_per_s: float
    flops_per_s: float
    link_bytes_per_s: float
    memory_bytes: int

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the field, unless all are above 0."""
        for field in ("bytes_per_s", "flops_per_s", "link_bytes_per_s", "memory_bytes"):
            if not getattr(self, field) > 0:
                raise ValueError(f"device {self.name}: {field} must be above 0, got {getattr(self, field)}")


@dataclass(frozen=True)
class Model:
    """A decoder's shape with its vocabulary: the output projection costs as much as several layers of a small model."""

    name: str
    shape: ModelShape
    vocabulary: int

    @property
    def head_weights(self) -> int:
        """Weights of the output projection. The embedding is a look-up and costs nothing here."""
        return self.shape.hidden * self.vocabulary

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that every step reads: all linear layers and the output projection."""
        return (self.shape.linear_weights + self.head_weights) * self.shape.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in bytes."""
        return self.shape.kv_bytes_per_token

    def kv_tokens_on(self, device: Device, memory_share: float = 0.9) -> int:
        """Tokens of KV that fit beside the weights into `memory_share` of the device.

        Activations are not counted, nor an input embedding that is not the output projection too (1 GB of Llama 3.1).

        Raises: ValueError if not even the weights fit.
        """
        left = memory_share * device.memory_bytes - self.weight_bytes
        tokens = int(left // self.kv_bytes_per_token)
        if tokens < 1:
            raise ValueError(
                f"{self.name} has {self.weight_bytes / 1e9:.1f} GB of weights: no KV memory is left in "
                f"{memory_share:.0%} of the {device.memory_bytes / 1e9:.0f} GB of {device.name}"
            )
        return tokens


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("h100-sxm", 3.35e12, 989.4e12, 64e9, 80 * 10**9),
        Device("a100-80g", 2.039e12, 312e12, 32e9, 80 * 10**9),
        Device("a100-40g", 1.555e12, 312e12, 32e9, 40 * 10**9),
        Device("rtx4090", 1.008e12, 165.2e12, 32e9, 24 * 10**9),
        Device("rtx3090", 0.936e12, 71e12, 32e9, 24 * 10**9),
        Device("gb200", 8.0e12, 2_500e12, 450e9, 186 * 10**9),
    )
}
"""Data sheets of the makers: SXM5, SXM4, two desktop cards, and one of the two GPUs of a GB200."""


def _shape(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int = 128) -> ModelShape:
    return ModelShape(layers, hidden, intermediate, heads, kv_heads, head_dim, dtype_bytes=2)


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("qwen3-0.6b", _shape(28, 1_024, 3_072, 16, 8), 151_936),
        Model("qwen2.5-7b", _shape(28, 3_584, 18_944, 28, 4), 152_064),
        Model("llama-3.1-8b", _shape(32, 4_096, 14_336, 32, 8), 128_256),
        # OPT's MLP has two matrices of 5,120 x 20,480; three of 13,653 have as many weights, but for 0.002 %.
        Model("opt-13b", _shape(40, 5_120, 13_653, 40, 40), 50_272),
    )
}
"""Published configurations, 16-bit weights and KV."""
