"""The default rates, found again: the offline script planned by our scheduler, then fitted (`fit.py`).

Owns: how the script's steps are planned. Knows nothing of the fit itself. The settings are those of the engine that was
measured: 256 requests may run, a step has at most 16,384 tokens, all 256 requests fit in memory.
"""

from __future__ import annotations

from reference_impl.sched.setup import Setup, build
from reference_impl.sim.arrivals import Arrival
from reference_impl.sim.cost import CostModel, Rates
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.fit import fit_published, offline_script
from reference_impl.sim.simulator import Settings, simulate
from reference_impl.sim.work import StepWork


def offline_work() -> StepWork:
    """What the steps of `offline_script()` compute and read, all told. Cost: 134 k tokens, about half a second."""
    setup = Setup("paged", "continuous", kv_tokens=2**19, max_length=2_048, max_tokens_per_step=16_384)
    arrivals = (Arrival(0.0, prompt, new, new) for prompt, new in offline_script())
    # All requests are there from the start, so that no price of a step changes what the next one holds.
    cost = CostModel(DEVICES["h100-sxm"], MODELS["qwen3-0.6b"])
    return simulate(arrivals, build(setup), cost, Settings(account_every=1_000)).work


def calibrated() -> Rates:
    """`cost.PUBLISHED_RATES`, from the published figures."""
    return fit_published(offline_work())
