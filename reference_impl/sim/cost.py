"""How long a step takes: five terms, added up.

    launch      a fixed time for each step, and one for each request in it (kernels, sampling, the host's Python)
    memory      weights once a step, keys and values read and written, copies; over the bandwidth that is reached
    linear      FLOPs of the linear layers and, once a request, of the output projection; over the rate reached
    attention   FLOPs of scores and weighted sums; over the rate reached
    link        bytes swapped over the link's peak, and a fixed time for each block swapped

Owns: the terms and their sum. Knows nothing of requests or queues. The terms are added: memory and compute are taken
not to overlap. That is right where one of them rules, as in decoding (memory) and in a long prefill (compute), and at
worst twice too long where both are equal. In return the model is linear in its parameters, so that it can be fitted
to measurements by least squares (`fit.py`) and every second has a name. Attention is taken to be balanced over the
device whatever the lengths; a kernel that is not takes longer on unequal ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from reference_impl.sim.device import Device, Model
from reference_impl.sim.work import StepWork


@dataclass(frozen=True)
class Rates:
    """What an engine reaches, apart from the device it runs on.

    step_s, request_s: seconds. bandwidth, linear, attention: shares of the device's peaks. copy_s: seconds for each
    block swapped, besides its bytes.
    """

    step_s: float
    request_s: float
    bandwidth: float
    linear: float
    attention: float
    copy_s: float

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the field, on a negative time or a share of nothing."""
        for field in fields(self):
            value = getattr(self, field.name)
            is_time = field.name.endswith("_s")
            if value < 0 or (not is_time and value == 0):
                raise ValueError(f"{field.name} must be {'at least' if is_time else 'above'} 0, got {value}")


PUBLISHED_RATES = Rates(
    step_s=1.3917e-3, request_s=4.0095e-6, bandwidth=0.92388, linear=0.80, attention=0.75, copy_s=10e-6
)
"""What `calibrate.calibrated()` gives, to five digits; a test fits them again. `copy_s` alone is assumed: the order of
one driver call."""


class CostModel:
    """Seconds for a step of one model on one device at given rates."""

    def __init__(self, device: Device, model: Model, rates: Rates = PUBLISHED_RATES) -> None:
        self.device = device
        self.model = model
        self.rates = rates
        shape = model.shape
        bytes_per_s = device.bytes_per_s * rates.bandwidth
        linear_per_s = device.flops_per_s * rates.linear
        self._per_step = rates.step_s + model.weight_bytes / bytes_per_s
        self._per_row = rates.request_s + 2 * model.head_weights / linear_per_s
        self._per_kv_token = model.kv_bytes_per_token / bytes_per_s
        # What a token computes, and the keys and values that it writes.
        self._per_token = shape.linear_flops(1) / linear_per_s + self._per_kv_token
        self._per_pair = shape.attention_flops(1) / (device.flops_per_s * rates.attention)
        self._per_swapped = model.kv_bytes_per_token / device.link_bytes_per_s

    def step_s(self, work: StepWork) -> float:
        """Seconds for this work. Cost: a dozen multiplications."""
        seconds = (
            work.steps * self._per_step
            + work.rows * self._per_row
            + work.tokens * self._per_token
            + work.pairs * self._per_pair
            + work.kv_read * self._per_kv_token
        )
        if work.copied_tokens or work.swapped_tokens or work.swap_copies:
            # A copy on the device reads and writes.
            seconds += 2 * work.copied_tokens * self._per_kv_token
            seconds += work.swapped_tokens * self._per_swapped + work.swap_copies * self.rates.copy_s
        return seconds

    def terms(self, work: StepWork) -> dict[str, float]:
        """The five terms in seconds; their sum is `step_s(work)`."""
        rates, device = self.rates, self.device
        linear, attention = flops(work, self.model)
        return {
            "launch": work.steps * rates.step_s + work.rows * rates.request_s,
            "memory": memory_bytes(work, self.model) / (device.bytes_per_s * rates.bandwidth),
            "linear": linear / (device.flops_per_s * rates.linear),
            "attention": attention / (device.flops_per_s * rates.attention),
            "link": work.swapped_tokens * self._per_swapped + work.swap_copies * rates.copy_s,
        }


def memory_bytes(work: StepWork, model: Model) -> int:
    """Bytes that this work reads and writes in device memory."""
    kv_tokens = work.kv_read + work.tokens + 2 * work.copied_tokens
    return work.steps * model.weight_bytes + kv_tokens * model.kv_bytes_per_token


def flops(work: StepWork, model: Model) -> tuple[int, int]:
    """FLOPs of (linear layers and output projection, attention)."""
    linear = model.shape.linear_flops(work.tokens) + 2 * model.head_weights * work.rows
    return linear, model.shape.attention_flops(work.pairs)
