"""MEADS: generalised Hamiltonian Monte Carlo that many chains tune for each other, with nothing left to set.

A transition is one leapfrog step, with a momentum that is refreshed in part and an acceptance threshold that persists,
so that rejections, which turn the chain around, come in clusters. Chains are in folds; each fold takes its scales, step
size and damping from the chains of the fold before it.

Source: Hoffman & Sountsov (2022), "Tuning-free generalized Hamiltonian Monte Carlo"; Horowitz (1991) and Neal (2020),
"Non-reversibly updating a uniform [0,1] value for Metropolis accept/reject decisions", for the transition.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc._chees import towards
from jaxprob.inference.mcmc._generalized_hmc import GeneralizedHMCState, generalized_hmc
from jaxprob.inference.mcmc._hmc import HMCInfo
from jaxprob.inference.mcmc._log_density import LogDensity, as_log_density
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.mcmc._warmup import Warmup, WarmupChain, gather

POINTS = 8  # what is kept is averaged over about the last eighth of the transitions


class MEADSTuning(NamedTuple):
    """What a transition is made with.

    Attributes:
      log_step_size: ().
      log_damping: (), of the rate at which the momentum is forgotten.
      log_scale: (size,), of the standard deviations of the position.
    """

    log_step_size: jax.Array
    log_damping: jax.Array
    log_scale: jax.Array


class MEADSShared(NamedTuple):
    """What all chains have in common.

    Attributes:
      transitions: (), made while tuning.
      num_steps: (), to make in all.
      tuning: running mean over folds and transitions; that of all chains once the tuning stands still.
    """

    transitions: jax.Array
    num_steps: jax.Array
    tuning: MEADSTuning


def meads(
    log_density: core.LogDensity,
    *,
    num_steps: int = 1000,
    folds: int = 4,
    axis_name: str | Sequence[str] | None = None,
) -> Warmup:
    """MEADS: generalised HMC whose step size, damping and scales come from the other chains.

    With s the standard deviations of a fold's positions x, and lambda(.) the estimate `tr(C^2) / tr(C)` of the largest
    eigenvalue of a second moment C, the next fold has
    `step size = min(1, 1 / (2 sqrt(lambda(s gradient))))`,
    `damping = max(1 / sqrt(lambda((x - mean) / s)), 1 / ((t + 1) step size))`,
    and keeps a share `exp(-2 step size damping)` of the variance of its momentum. After `num_steps` transitions all
    chains go on with the geometric means of the last of these. Folds are not shuffled.

    Several chains map `step` over `chain` alone, with the name of the mapped axis, as for `warmup`. A transition costs
    one gradient, and while tuning a product of matrices (chain, size) besides.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays.
      num_steps: transitions that tune.
      folds: the number of chains must be a multiple of it, with two or more to a fold; 32 to a fold is a good number.
      axis_name: named axes over which there are chains.

    Returns:
      Warmup: an Algorithm (`init`, `step`) and `finish`. The state is a `core.Shared` of `WarmupChain` and
      `MEADSShared`; the kernel is `generalized_hmc`. Chains should not all start at one
      point.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for numbers that cannot be what they are for; by `step`, while tracing, for a number of chains that
        makes no folds.

    >>> tuning = meads(lambda q: -0.5 * (q**2).sum(), num_steps=20, axis_name="chain")
    >>> both = core.Shared(0, None)
    >>> init = jax.vmap(tuning.init, out_axes=both, axis_name="chain")
    >>> step = jax.vmap(tuning.step, in_axes=(0, both), out_axes=(both, 0), axis_name="chain")
    >>> state = init(jax.random.normal(jax.random.key(2), (16, 3)), jax.random.split(jax.random.key(0), 16))
    >>> state, info = step(jax.random.split(jax.random.key(1), 16), state)
    >>> kernel = tuning.finish(state)

    Source: Hoffman & Sountsov (2022), algorithm 3.
    """
    target = as_log_density(log_density, "meads")
    if num_steps < 0:
        raise core.bad_value("meads", "num_steps", num_steps, "an integer of at least 0")
    if folds < 2:
        raise core.bad_value("meads", "folds", folds, "an integer of at least 2")
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())

    def init(position: Any, key: core.Key) -> core.Shared:
        flat = hamiltonian.flatten(target, position)
        zero = jnp.zeros((), flat.dtype)
        tuning = MEADSTuning(zero, zero, jnp.zeros((flat.size,), flat.dtype))
        state = _build(target, tuning).init(position, key)
        return core.Shared(WarmupChain(state), MEADSShared(jnp.int32(0), jnp.int32(num_steps), tuning))

    def step(key: core.Key, state: core.Shared) -> tuple[core.Shared, HMCInfo]:
        chain, shared = state
        unfinished = shared.transitions < shared.num_steps
        tuning, shared = core.cond(
            unfinished, learn, lambda shared, kernel: (shared.tuning, shared), shared, chain.kernel
        )
        new, info = _build(target, tuning).step(core.as_key(key, "meads"), chain.kernel)
        return core.Shared(WarmupChain(new), shared), info

    def learn(shared: MEADSShared, kernel: GeneralizedHMCState) -> tuple[MEADSTuning, MEADSShared]:
        """What this chain's fold moves with, and what is kept."""
        dtype = kernel.momentum.dtype
        mine = [core.ravel(tree)[0].astype(dtype) for tree in (kernel.position, kernel.log_density_gradient)]
        positions, gradients = gather(mine, axes)
        chains = positions.shape[0]
        if chains % folds or chains < 2 * folds:
            todo = "Give axis_name the names of the axes over which chains are mapped"
            raise core.bad_value("meads", "the number of chains", chains, f"a multiple of {folds} folds", todo)
        rows = [x.reshape(folds, chains // folds, -1) for x in (positions, gradients)]
        of_folds = jax.vmap(partial(_estimate, shared.transitions))(*rows)
        before = (lax.axis_index(axes) // (chains // folds) - 1) % folds
        remember = 1 / (shared.transitions // POINTS + 1).astype(dtype)
        average = jax.tree.map(
            lambda old, new: towards(old, core.ordered_sum(new) / folds, remember), shared.tuning, of_folds
        )
        mine = jax.tree.map(lambda x: x[before], of_folds)
        return mine, shared._replace(transitions=shared.transitions + 1, tuning=average)

    def finish(state: core.Shared) -> core.Algorithm:
        return _build(target, state.shared.tuning)

    return Warmup(init, step, finish)


def _build(target: LogDensity, tuning: MEADSTuning) -> core.Algorithm:
    step_size = jnp.exp(tuning.log_step_size)
    kept = jnp.exp(-step_size * jnp.exp(tuning.log_damping))
    return generalized_hmc(
        target,
        step_size=step_size,
        inverse_mass_matrix=Metric(jnp.exp(tuning.log_scale)),
        persistence=kept,
        drift=core.rounded((1 - kept) * (1 + kept) / 2),
    )


def _estimate(transitions: jax.Array, positions: jax.Array, gradients: jax.Array) -> MEADSTuning:
    """What the chains of one fold say: positions and gradients (chain, size)."""
    chains = positions.shape[0]
    centred = positions - jnp.expand_dims(core.ordered_sum(positions) / chains, 0)
    scale = jnp.sqrt(core.ordered_dot(centred, centred) / chains)
    scale = jnp.where(jnp.isfinite(scale) & (scale > 0), scale, 1)
    row = jnp.expand_dims(scale, 0)
    steepest, longest = _largest_eigenvalue(gradients * row), _largest_eigenvalue(centred * (1 / row))
    step_size = jnp.minimum(0.5 / jnp.sqrt(steepest), 1)
    step_size = jnp.where(step_size > 0, step_size, 1)
    damping = jnp.where(longest > 0, 1 / jnp.sqrt(longest), 0)
    damping = jnp.maximum(damping, 1 / ((transitions + 1).astype(scale.dtype) * step_size))
    return MEADSTuning(jnp.log(step_size), jnp.log(damping), jnp.log(scale))


def _largest_eigenvalue(rows: jax.Array) -> jax.Array:
    """tr(C^2) / tr(C), each without bias, of the second moment C of (chain, size) rows."""
    chains = rows.shape[0]
    rows = lax.optimization_barrier(rows)
    products = lax.optimization_barrier(core.matmul(rows, rows.T))
    squares = jnp.diagonal(products)
    apart = core.ordered_sum(core.ordered_dot(products, products)) - core.ordered_dot(squares, squares)
    return apart / (chains - 1) / core.ordered_sum(squares)
