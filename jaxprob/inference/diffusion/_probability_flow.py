"""The probability-flow ordinary differential equation, whose solution has the law of x_t at every time.

All Gaussian processes with the same levels of noise have the same equation in the same coordinates. Here these are
`y = x / sqrt(alpha^2 + sigma^2)` and the angle `phi = atan(sigma / alpha)`, in which `dy/dphi = cos(phi) noise -
sin(phi) x_0` is bounded at both ends, and y does not move at all for independent data of unit variance. `x / alpha` and
`sigma / alpha`, the coordinates of Karras et al. (2022), are the same near data; but where there is little signal
they are large, and Heun's step from there is far off unless the grid is fine.

Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021), "Score-based generative modeling through stochastic
differential equations", equation 13; Salimans & Ho (2022), "Progressive distillation", appendix D, for the angle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.diffusion._runge_kutta import Slope, Solution, controlled_steps
from jaxprob.inference.diffusion._solver import Solver, Step
from jaxprob.models.diffusion import Gaussian


def spread(process: Gaussian, log_ratio: jax.Array) -> jax.Array:
    """sqrt(alpha^2 + sigma^2) at a log ratio, (): x over it is y."""
    log_alpha, log_sigma = process.log_scales(log_ratio)
    return jnp.exp(0.5 * jnp.logaddexp(2 * log_alpha, 2 * log_sigma))


def _angle(log_ratio: jax.Array) -> jax.Array:
    return jnp.arctan(jnp.exp(-0.5 * log_ratio))


def _velocity(process: Gaussian, output: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """dy/dphi."""
    angle = _angle(process.log_ratio(t)).astype(x.dtype)
    return jnp.cos(angle) * process.noise_of(output, x, t) - jnp.sin(angle) * process.clean(output, x, t)


def flow_slope(process: Gaussian, denoise: Callable[[Any, jax.Array], jax.Array]) -> Slope:
    """`(log ratio, y) -> dy / dlog ratio`, the equation in a variable in which steps of one length suit all levels."""

    def slope(log_ratio: jax.Array, y: jax.Array) -> jax.Array:
        t = process.schedule.inverse(log_ratio)
        x = y * spread(process, log_ratio).astype(y.dtype)
        angle = _angle(log_ratio)
        return (-0.5 * jnp.sin(angle) * jnp.cos(angle)).astype(y.dtype) * _velocity(process, denoise(x, t), x, t)

    return slope


def euler(steps: int = 50, grid: str = "time") -> Solver:
    """Euler's method for the probability-flow equation, of order one, in the coordinates of the angle.

    `ddim` without randomness is Euler's method too, in the coordinates `x / alpha` and `sigma / alpha`.

    Args:
      steps: how many; one evaluation of the denoiser each.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if `steps` is no whole number, or for an unknown grid.

    >>> euler(10).steps
    10

    Source: Song et al. (2021), equation 13.
    """
    return Solver("diffusion.euler", steps, core.Bound(_advance, False), grid=grid, kind=Gaussian)


def heun(steps: int = 20, grid: str = "time") -> Solver:
    """Heun's method for the probability-flow equation, of order two, in the coordinates of the angle.

    Args:
      steps: how many; two evaluations of the denoiser each.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if `steps` is no whole number, or for an unknown grid.

    >>> heun(10).evaluations
    2

    Source: Karras, Aittala, Aila & Laine (2022), "Elucidating the design space of diffusion-based generative models",
    algorithm 1, in other coordinates.
    """
    return Solver("diffusion.heun", steps, core.Bound(_advance, True), evaluations=2, grid=grid, kind=Gaussian)


def _advance(twice: bool, process: Any, step: Step) -> tuple[Any, Any]:
    before, after = process.log_ratio(step.t), process.log_ratio(step.s)
    dtype = step.x.dtype
    turn = (_angle(after) - _angle(before)).astype(dtype)
    y, wide = step.x / spread(process, before).astype(dtype), spread(process, after).astype(dtype)
    velocity = _velocity(process, step.denoise(step.x, step.t), step.x, step.t)
    x = wide * (y + turn * velocity)
    if twice:
        velocity = 0.5 * (velocity + _velocity(process, step.denoise(x, step.s), x, step.s))
        x = wide * (y + turn * velocity)
    return x, step.memory


class AdaptiveMemory(NamedTuple):
    """What `adaptive` tells of an example.

    Attributes:
      reached: (), whether the tolerance was met all the way to time 0.
      evaluations: (), int32, of the denoiser.
    """

    reached: jax.Array
    evaluations: jax.Array


def adaptive(tolerance: float = 1e-4, max_steps: int = 1000) -> Solver:
    """The probability-flow equation by an embedded Runge-Kutta method of order five, with steps that suit an error.

    It is one step of the algorithm, a loop inside; each example has its own steps. Its state's memory says whether
    time 0 was reached, and an example for which `max_steps` were too few is NaN.

    Args:
      tolerance: error of a step, by its estimate, as a share of one plus the size of a number, where noise has size
        one.
      max_steps: the most steps, failed ones included; six evaluations of the denoiser each.

    Raises:
      ValueError: if `tolerance` is not positive or `max_steps` no whole number.

    >>> adaptive(1e-3).steps
    1

    Source: Song et al. (2021), appendix D.4; Dormand & Prince (1980), RK5(4)7M.
    """
    name = "diffusion.adaptive"
    core.check_positive(name, tolerance=tolerance)
    core.check_whole(name, max_steps=max_steps)
    advance = core.Bound(_adapt, float(tolerance), int(max_steps))
    return Solver(name, 1, advance, core.Bound(_nothing_yet), evaluations=core.Bound(_counted), kind=Gaussian)


def _nothing_yet(process: Any, x: Any, shape: tuple[int, ...]) -> AdaptiveMemory:
    return AdaptiveMemory(jnp.bool_(False), jnp.int32(0))


def _counted(memory: AdaptiveMemory) -> jax.Array:
    return memory.evaluations


def _adapt(tolerance: float, max_steps: int, process: Any, step: Step) -> tuple[Any, AdaptiveMemory]:
    last, first = process.log_ratio(step.t), process.log_ratio(step.s)
    y = step.x / spread(process, last).astype(step.x.dtype)
    solution: Solution = controlled_steps(flow_slope(process, step.denoise), y, last, first, tolerance, max_steps)
    x = jnp.where(solution.reached, solution.y * spread(process, first).astype(step.x.dtype), jnp.nan)
    return x, AdaptiveMemory(solution.reached, solution.evaluations)
