"""What a fork must be: one request whose prompt was just computed goes on as several.

Owns: the checks of `finish_step(forked=...)`, all of them made before anything changes. Knows nothing of memory:
whether a child shares its parent's KV or waits and computes its own is in `lifecycle.py`.
Source: Kwon et al., SOSP 2023, section 4.4 (parallel sampling).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import index

from reference_impl.memory.prefix_cache import MAX_TOKEN_ID
from reference_impl.sched.request import Request, State
from reference_impl.sched.step import Step
from reference_impl.sched.surface import Forks


def check_forks(forked: Forks, step: Step, live: Mapping[int, Request]) -> None:
    """Every rule of `surface.EngineScheduler.finish_step` for `forked`. Cost: O(prompt tokens) a child with ids.

    Raises: KeyError on an unknown parent, ValueError or TypeError on any other broken rule.
    """
    newborn: set[int] = set()
    for identity, children in forked.items():
        parent = live.get(identity)
        if parent is None:
            raise KeyError(f"no request {identity}")
        if identity not in step.scheduled or parent.num_left:
            raise ValueError(f"request {identity} made no token in this step, so it cannot fork with it")
        if parent.num_new:
            raise ValueError(f"request {identity} made {parent.num_new} tokens before: it forks with its first")
        for child, token in children:
            if child.request in live or child.request in newborn:
                raise ValueError(f"request {child.request} is here already")
            newborn.add(child.request)
            _check_child(parent, child)
            check_token("the first token of", child.request, token)


def check_token(what: str, request: int, token: int) -> None:
    """Raises: TypeError or ValueError, with `what` and the request, unless `token` is a token id."""
    try:
        number = index(token)
    except TypeError:
        raise TypeError(f"{what} request {request} must be a token id, got {token!r}") from None
    if not 0 <= number <= MAX_TOKEN_ID:
        raise ValueError(f"{what} request {request} must be a token id, 0 to {MAX_TOKEN_ID}, got {token}")


def _check_child(parent: Request, child: Request) -> None:
    name = f"request {child.request}"
    if child.state is not State.WAITING or child.place is not None:
        raise ValueError(f"{name} is not new, it was in a queue before")
    for what in ("prompt_tokens", "max_new_tokens", "salt"):
        mine, other = getattr(child, what), getattr(parent, what)
        if mine != other:
            raise ValueError(f"{name} has {what} {mine!r}, its parent {other!r}")
    if child.max_new_tokens == 1:
        raise ValueError(f"{name} may make one token and has it: it is over, there is nothing to fork")
    if (child.token_ids is None) != (parent.token_ids is None):
        raise ValueError(f"{name} and its parent must both have token_ids, or neither")
    if child.token_ids is None or parent.token_ids is None:
        return
    if child.token_ids is parent.token_ids:
        raise ValueError(f"{name} has the very token_ids of its parent, and each is to go on differently: pass a copy")
    if child.token_ids != parent.token_ids[: parent.prompt_tokens]:
        raise ValueError(f"token_ids of {name} are not the prompt of its parent")
