"""Starts drawn from an approximation of the posterior, one for each chain."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxprob import core
from jaxprob.runtime import _program

APPROXIMATIONS = ("laplace", "pathfinder")
KEY = 2**31  # what a run's key is folded with for the approximation, beyond any chain


def draws_positions(initial: Any) -> bool:
    """Whether a function `key -> start` is a method of a posterior or of an approximation to one.

    What they draw are positions, unconstrained already; other functions give a posterior constrained values.
    """
    from jaxprob.inference import vi

    owner = getattr(initial, "__self__", None)
    approximations = (vi.Pathfinder, vi.Laplace, vi.Guide, vi.BlockGuide, vi.ImplicitGuide)
    return hasattr(owner, "unconstrain") or isinstance(owner, approximations)


def approximate_starts(target: Any, name: str, key: core.Key, chains: int) -> list[Any]:
    """One unconstrained position for each chain, drawn from the approximation that `name` says, by the chain's own key.

    Raises:
      ValueError: for another name, a target that does not find its own starts, or an approximation that failed.
    """
    from jaxprob.inference import vi

    if name not in APPROXIMATIONS:
        todo = "It may also be a position, or a function of a key that draws one"
        raise core.bad_value("sample", "initial", repr(name), "'laplace' or 'pathfinder'", todo)
    if not hasattr(target, "initial"):
        call = "vi.pathfinder(log_density, start, key).initial"
        call = call if name == "pathfinder" else "vi.laplace(log_density, start).sample"
        todo = f"A bare log density has no shape of its own: pass initial={call}"
        raise core.bad_value("sample", "initial", f"{name!r} for a bare log density", "a position", todo)
    own = core.fold(key, np.uint32(KEY))
    if name == "pathfinder":
        found = jax.jit(lambda target, key: vi.pathfinder(target, key=key))(target, own)
        if not np.isfinite(found.elbo):
            got = "'pathfinder', which found no finite log density on any path"
            raise core.bad_value("sample", "initial", got, "a start", "Leave initial out, or check the model")
        draw = found.initial
    else:
        mode = jax.jit(lambda target, key: vi.laplace(target, key=key))(target, own)
        if not mode.converged:
            got = f"'laplace', which found no mode (log density {mode.log_density} where the search ended)"
            raise core.bad_value("sample", "initial", got, "a mode", "Try initial='pathfinder', or leave initial out")
        draw = mode.sample
    return [draw(core.fold(_program.start_key(core.fold(key, chain), 0), 0)) for chain in range(chains)]
