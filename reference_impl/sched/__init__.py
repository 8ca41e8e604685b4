"""Which requests compute how many tokens in the next step: pure Python, no torch.

Owns: requests and their counters (`request.py`), the order of those that wait (`queues.py`), what becomes of them in
any scheduler (`lifecycle.py`, with several answers to one prompt in `forks.py`), and the schedulers: continuous
batching (`scheduler.py`), what it is measured against (`static_batching.py`, `orca.py`, `prefill_first.py`) and
anybody's of lab 6 (`contract.py`). All have one surface (`surface.py`). Knows nothing of blocks, which `memory` keeps
behind `KVMemory`, nor of time, models or kernels: a plan goes out (`plan.py`), word of what ended comes back. Which
scheduler on which memory is a matter of names (`setup.py`).
Start with `request.py`: three counters say all that happens to a request. Then `scheduler.py`.
"""

from reference_impl.sched.contract import ContractScheduler, PlanError
from reference_impl.sched.orca import orca
from reference_impl.sched.plan import Plan, Rectangle
from reference_impl.sched.prefill_first import PrefillFirst
from reference_impl.sched.queues import ByPriority, FairShare, FirstCome, ShortestFirst, WaitingQueue
from reference_impl.sched.request import Request, State
from reference_impl.sched.scheduler import ContinuousBatching
from reference_impl.sched.static_batching import StaticBatching
from reference_impl.sched.surface import Counters, EngineScheduler, Forks, Limits

__all__ = [
    "ByPriority",
    "ContinuousBatching",
    "ContractScheduler",
    "Counters",
    "EngineScheduler",
    "FairShare",
    "FirstCome",
    "Forks",
    "Limits",
    "Plan",
    "PlanError",
    "PrefillFirst",
    "Rectangle",
    "Request",
    "ShortestFirst",
    "State",
    "StaticBatching",
    "WaitingQueue",
    "orca",
]
