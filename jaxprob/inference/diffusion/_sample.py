"""Samples of a diffusion model: any process, any denoiser, any solver."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.diffusion._ancestral import ancestral
from jaxprob.inference.diffusion._solver import Solver, check_each
from jaxprob.models.diffusion import Denoiser, NoisingProcess
from jaxprob.models.diffusion._process import check_process


def sample(
    key: core.Key,
    process: NoisingProcess | Callable[[Any], NoisingProcess],
    denoiser: Denoiser,
    shape: tuple[int, ...] | int,
    *,
    solver: Solver | None = None,
    condition: Any = None,
    start: Any = None,
    chunk: int | None = None,
) -> Any:
    """Draws examples from noise.

    Sample i has a key that is folded from i, so that it does not depend on how many there are.

    With these steps the exact denoiser of a two-dimensional mixture gives its moments to the errors of 4000 draws, for
    every Gaussian process with its default schedule and each solver's default grid: `heun(15)`, `dpm_solver(20)` (40
    for `variance_exploding` and `elucidated`), `sde_dpm_solver(60)`, `ddim(100)`, `euler(100)`, `ancestral(200)`,
    `euler_maruyama(500)`, `predictor_corrector(150, 2)`, `annealed_langevin(150, 20)`. For `bayesian_flow` all but
    `heun` and `euler` want the grid "log_ratio", and `dpm_solver` 40 steps.

    Args:
      key: random key.
      process: a noising process; or a function of the condition of one example that makes one, such as one whose noise
        is a function at the times of a series.
      denoiser: `(x, t, condition) -> output` of one example, such as `functools.partial(network.apply, params)`, whose
        `params` are then arguments of the compiled program.
      shape: (sample, *example).
      solver: how; `ancestral()` by default.
      condition: pytree with a leading axis (sample, ...), or None.
      start: pytree (sample, ...), x at time 1; drawn from the prior by default.
      chunk: the most samples at once, to bound memory.

    Returns:
      (sample, *example).

    Raises:
      TypeError: if the process or the solver is none, or the solver is for another process.
      ValueError: if `shape` has no samples, a condition has another number of them, or the denoiser's output another
        shape than the process needs.

    >>> from jaxprob.models.diffusion import variance_preserving
    >>> denoiser = lambda x, t, condition: x  # what is best for standard normal data, up to a factor
    >>> sample(jax.random.key(0), variance_preserving(prediction="v"), denoiser, (4, 2), solver=ancestral(5)).shape
    (4, 2)
    """
    name = "diffusion.sample"
    key = core.as_key(key, name)
    if isinstance(process, NoisingProcess) or not callable(process):
        check_process(name, process)
    solver = ancestral() if solver is None else solver
    if not isinstance(solver, Solver):
        raise core.bad_type(name, "solver", core.describe(solver), "a solver", "Such as diffusion.ancestral(100)")
    if isinstance(process, NoisingProcess):
        solver.check(name, process)
    if not callable(denoiser):
        raise core.bad_type(name, "denoiser", core.describe(denoiser), "a function (x, t, condition)")
    shape = core.as_shape(name, shape)
    if len(shape) < 1 or shape[0] < 1:
        raise core.bad_value(name, "shape", f"{shape}", "(sample, *example), with one sample or more")
    for argument, given in (("condition", condition), ("start", start)):
        check_each(name, argument, given, shape[0], "samples")
    if chunk is not None:
        core.check_whole(name, chunk=chunk)
    process = process if isinstance(process, NoisingProcess) else core.as_partial(process)
    return _sample(key, process, core.as_partial(denoiser), condition, start, solver, shape, chunk)


@functools.partial(jax.jit, static_argnames=("solver", "shape", "chunk"))
def _sample(
    key: core.Key,
    process: Any,
    denoiser: Any,
    condition: Any,
    start: Any,
    solver: Solver,
    shape: tuple[int, ...],
    chunk: int | None,
) -> Any:
    def one(inputs: tuple[jax.Array, Any, Any]) -> Any:
        index, condition, start = inputs
        own = core.fold(key, index)
        made = process if isinstance(process, NoisingProcess) else process(condition)
        algorithm = solver.algorithm(made, denoiser, shape[1:], condition)
        state = algorithm.init(start, core.fold(own, 0))
        state, _ = scan.scan(
            lambda state, i: (algorithm.step(core.fold(own, 1, i), state)[0], None), state, jnp.arange(solver.steps)
        )
        return made.finish(core.fold(own, 2), state.position, denoiser, condition)

    # Each example has the same times, so that nothing but x and what depends on it has an axis of samples.
    inputs = (jnp.arange(shape[0]), condition, start)
    return jax.vmap(one)(inputs) if chunk is None else jax.lax.map(one, inputs, batch_size=chunk)
