"""DPM-Solver++: exponential integrators in the log signal-to-noise ratio that extrapolate what data will look like.

With `h` the half of what the log ratio grows by in a step, the probability-flow equation is
`x_s = sigma_s / sigma_t x_t + sigma_s (integral over half log ratios l of e^l E[x_0])`, and only the last term needs an
approximation: the expectation of x_0 as a polynomial through its latest values.

Source: Lu, Zhou, Bao, Chen, Li & Zhu (2022), "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
models".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.diffusion._solver import Solver, Step
from jaxprob.models.diffusion import Gaussian


class Memory(NamedTuple):
    """The two expectations of x_0 before the present one, the later first.

    Attributes:
      cleans: (2, *shape).
      halves: (2,), the halves of their log ratios.
    """

    cleans: jax.Array
    halves: jax.Array


def remember(process: Any, x: jax.Array, shape: tuple[int, ...]) -> Memory:
    """No expectations yet."""
    return Memory(jnp.zeros((2, *x.shape), x.dtype), jnp.zeros((2,), x.dtype))


def dpm_solver(steps: int = 20, order: int = 2, grid: str = "time") -> Solver:
    """DPM-Solver++ 2M or 3M: a multistep method of order two or three for the probability-flow equation.

    The first steps are of lower order; and so are the last ones, which are much longer than those before them on many
    grids, and where little is left to change. With grids even in time they may be long at the ends, and "log_ratio" is
    better for many steps or tolerances below a percent.

    Args:
      steps: how many; one evaluation of the denoiser each.
      order: 1 (which is `ddim`), 2 or 3.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if `steps` is no whole number, or for an unknown order or grid.

    >>> dpm_solver(20, order=3).evaluations
    1

    Source: Lu et al. (2022), algorithm 2 for order 2; section 4 and appendix A for order 3.
    """
    name = "diffusion.dpm_solver"
    if order not in (1, 2, 3):
        raise core.bad_value(name, "order", core.describe(order), "1, 2 or 3")
    return Solver(name, steps, core.Bound(_advance, steps, order), core.Bound(remember), grid=grid, kind=Gaussian)


class Extrapolation(NamedTuple):
    """What the step of a multistep method is made of.

    Attributes:
      clean: E[x_0] at the start of the step.
      first: the first divided difference times the step, or zero.
      second: the second divided difference times the square of the step, or zero.
      step: (), h.
      memory: for the next step.
    """

    clean: jax.Array
    first: jax.Array
    second: jax.Array
    step: jax.Array
    memory: Memory


def extrapolate(order: Any, process: Any, step: Step) -> Extrapolation:
    """Differences of the latest expectations of x_0, up to an order.

    Args:
      order: (), the highest of this step.
      process: a Gaussian process.
      step: of the solver.
    """
    dtype = step.x.dtype
    half, next_half = (0.5 * process.log_ratio(t).astype(dtype) for t in (step.t, step.s))
    length = next_half - half
    clean = process.clean(step.denoise(step.x, step.t), step.x, step.t)
    (one, two), (half_one, half_two) = step.memory.cleans, step.memory.halves
    memory = Memory(jnp.stack([clean, one]), jnp.stack([half, half_one]))
    use = jnp.minimum(step.taken + 1, order)
    # Where there is no such value yet, or times are one in their dtype, a length of one: nothing is divided by zero.
    gap = jnp.where((use >= 2) & (half != half_one), half - half_one, 1)
    gap_before = jnp.where((use >= 3) & (half_one != half_two), half_one - half_two, 1)
    latest, earlier = (clean - one) / gap, (one - two) / gap_before
    curve = jnp.where(use >= 3, (latest - earlier) / (gap + gap_before), 0)
    rise = jnp.where(use >= 2, latest, 0) + gap * curve
    return Extrapolation(clean, length * rise, length**2 * curve, length, memory)


def _advance(steps: int, order: int, process: Any, step: Step) -> tuple[Any, Memory]:
    clean, first, second, h, memory = extrapolate(jnp.minimum(order, steps - step.taken), process, step)
    _, before = process._scales_as(step.x, step.t)
    alpha, sigma = process._scales_as(step.x, step.s)
    gained = -jnp.expm1(-h)
    if order == 3:
        # Integrals of e^(l - h), l e^(l - h) and l^2 e^(l - h) over [0, h], the latter two over h and h^2.
        linear = 1 - core.expm1_over_x(-h)
        square = jnp.where(h > 0.05, 1 - 2 * linear / jnp.where(h > 0.05, h, 1), h * (1 / 3 - h * (1 / 12 - h / 60)))
        change = gained * clean + linear * first + square * second
    else:
        # As in the paper, whose middle of the step damps long ones where the exact integral does not.
        change = gained * (clean + 0.5 * first)
    return sigma / before * step.x + alpha * change, memory
