"""The same requests through several allocators, one after another: what `engine simulate` does.

Owns: which trace is meant, the rows, and what a failing row says. Knows nothing of the command line or of printing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from labkit.calibration import CALIBRATIONS
from labkit.workloads import Workload, load, workload
from reference_impl.plugin import PluginError, is_plugin, shown, told
from reference_impl.sched.contract import PlanError
from reference_impl.sched.setup import Setup, build
from reference_impl.sched.surface import EngineScheduler
from reference_impl.sim.arrivals import Arrival, Limits, faster, limits_of, poisson, recorded
from reference_impl.sim.cost import CostModel
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.metrics import Metrics
from reference_impl.sim.recovery import cheaper
from reference_impl.sim.report import Run
from reference_impl.sim.simulator import Progress, Settings, SimulationError, simulate

T = TypeVar("T")


@dataclass(frozen=True)
class Traffic:
    """Which requests come, and when: recorded times `rate_factor` times as fast, or Poisson at a rate of its own."""

    workload: Workload
    requests: int
    limits: Limits
    rate_factor: float = 1.0
    poisson_per_s: float | None = None
    seed: int = 0

    def described(self, settings: Settings) -> dict[str, object]:
        """All that decides when requests come and what is asked of them, as plain data."""
        return {
            "concurrency": settings.concurrency,
            "rate_factor": self.rate_factor,
            "poisson_per_s": self.poisson_per_s,
            "seed": self.seed,
            **asdict(self.limits),
            "targets": asdict(settings.targets),
        }

    def arrivals(self) -> Iterator[Arrival]:
        """The requests, anew at every call. Raises: ValueError on a rate that is not above 0."""
        requests = recorded(self.workload, self.limits, self.requests)
        if self.poisson_per_s is not None:
            return poisson(requests, self.poisson_per_s, self.seed)
        return faster(requests, self.rate_factor)


def read_trace(name: str, seed: int = 0) -> Workload:
    """A workload by name, or the file at that path. Raises: ValueError or OSError naming it."""
    if name in CALIBRATIONS:
        return workload(name, seed)
    if not Path(name).is_file():
        raise ValueError(f"no trace {name!r}: it is no file, and the names are {', '.join(CALIBRATIONS)}")
    return load(Path(name))


def traffic_of(trace: Workload, requests: int | None = None) -> Traffic:
    """The first requests of a trace. Raises: ValueError below one request."""
    if requests is not None and requests < 1:
        raise ValueError(f"requests must be at least 1, got {requests}")
    count = len(trace) if requests is None else min(requests, len(trace))
    return Traffic(trace, count, limits_of(trace, count))


def cost_model(model: str, device: str) -> CostModel:
    """At the default rates. Raises: ValueError on an unknown name."""
    for what, name, known in (("model", model, MODELS), ("device", device, DEVICES)):
        if name not in known:
            raise ValueError(f"no {what} {name!r}; there are {', '.join(known)}")
    return CostModel(DEVICES[device], MODELS[model])


def compare(
    setups: Sequence[Setup],
    traffic: Traffic,
    cost: CostModel,
    settings: Settings,
    progress_of: Callable[[str], Progress | None] = lambda name: None,
) -> list[Run]:
    """One run for each setup, in order. `progress_of`: allocator -> who is told how far it is.

    Raises: ValueError in one line on whatever a row cannot do, also on an error inside a class from a file.
    """
    # All are made before the first one runs: what cannot be made is known before minutes are spent.
    schedulers = [_blaming(setup, partial(build, setup, cheaper=cheaper(cost, setup.block_size))) for setup in setups]
    return [
        _run(setup, scheduler, traffic, cost, settings, progress_of(shown(setup.allocator)))
        for setup, scheduler in zip(setups, schedulers, strict=True)
    ]


def _run(
    setup: Setup,
    scheduler: EngineScheduler,
    traffic: Traffic,
    cost: CostModel,
    settings: Settings,
    progress: Progress | None,
) -> Run:
    started, name = time.perf_counter(), shown(setup.allocator)
    replay = partial(simulate, traffic.arrivals(), scheduler, cost, settings)
    metrics = _blaming(setup, partial(replay, progress=progress))
    if not metrics.completed:
        raise ValueError(f"{name}: not one of {traffic.requests:,} requests could run: {refusals(metrics)}")
    effective = setup.effective()
    config = asdict(effective) | {"allocator": name}
    config |= {what: shown(config[what]) for what in ("scheduler", "prefix_cache")}
    return Run(name, config, metrics, time.perf_counter() - started)


def _blaming(setup: Setup, act: Callable[[], T]) -> T:
    """What `act` returns. Raises: ValueError, naming the row, on what its classes did, an exit of theirs too."""
    try:
        return act()
    except PlanError as error:
        raise ValueError(f"{setup.scheduler}: PlanError: {error}") from error
    except PluginError:
        raise
    except SimulationError as error:
        raise ValueError(f"{shown(setup.allocator)}: {error}") from error
    except (Exception, SystemExit) as error:
        said = _blamed(error, setup)
        if said is None:
            raise
        raise ValueError(said) from error


def refusals(metrics: Metrics) -> str:
    """Requests refused at the door, by reason; empty if there were none."""
    counts = ", ".join(f"{count:,} x {reason}" for reason, count in metrics.refused.most_common())
    return counts + (f" (the first: {metrics.first_refused})" if metrics.first_refused else "")


def _blamed(error: BaseException, setup: Setup) -> str | None:
    """One line about an error that a class from a file provoked in our code; None if no such class took part."""
    parts = setup.effective()
    place = next((name for name in (parts.allocator, parts.prefix_cache, parts.scheduler) if is_plugin(name)), None)
    return None if place is None else told(error, place)
