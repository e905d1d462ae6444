"""What a diffusion model says about data: the variational bound of any process, and the likelihood of a Gaussian one.

Sources: Kingma, Salimans, Poole & Ho (2021), "Variational diffusion models", for the bound in continuous and discrete
time; Song et al. (2021), "Score-based generative modeling through stochastic differential equations", appendix D.2,
after Chen, Rubanova, Bettencourt & Duvenaud (2018), "Neural ordinary differential equations", for the likelihood;
Grathwohl, Chen, Bettencourt, Sutskever & Duvenaud (2019), "FFJORD", for its trace by random probes; Theis, van den
Oord & Bethge (2016), "A note on the evaluation of generative models", for dequantisation.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.inference.diffusion._probability_flow import flow_slope, spread
from jaxprob.inference.diffusion._runge_kutta import controlled_steps, fixed_steps
from jaxprob.inference.diffusion._solver import GRIDS, check_each
from jaxprob.models.diffusion import Denoiser, Gaussian, NoisingProcess, White
from jaxprob.models.diffusion._process import check_process


class NegativeElbo(NamedTuple):
    """An estimate of the variational bound.

    Attributes:
      nats: (example,), at least `-log p(x)` in expectation.
      standard_error: (example,), of the estimate.
    """

    nats: jax.Array
    standard_error: jax.Array


class LogLikelihood(NamedTuple):
    """Log densities by the probability-flow equation.

    Attributes:
      log_likelihood: (example,), in nats; NaN where `converged` is false.
      standard_error: (example,), of the trace by random probes; zero for the exact trace, NaN for a single probe.
      latent: (example, *shape), where the equation takes the example to at time 1.
      converged: (example,), whether the tolerance was met up to time 1; true for a fixed number of steps.
      evaluations: (example,), int32, of the denoiser, each with its derivatives.
    """

    log_likelihood: jax.Array
    standard_error: jax.Array
    latent: jax.Array
    converged: jax.Array
    evaluations: jax.Array


def _check(name: str, process: Any, denoiser: Any, x: Any, condition: Any) -> int:
    """The number of examples, after all checks."""
    check_process(name, process)
    if not callable(denoiser):
        raise core.bad_type(name, "denoiser", core.describe(denoiser), "a function (x, t, condition)")
    if jnp.ndim(x) < 1 or jnp.shape(x)[0] < 1:
        raise core.bad_value(name, "x", f"of shape {jnp.shape(x)}", "(example, *shape), with one example or more")
    count = jnp.shape(x)[0]
    check_each(name, "condition", condition, count, "examples")
    process.check_data(name, x)
    return count


# The bound.


def negative_elbo(
    key: core.Key,
    process: NoisingProcess,
    denoiser: Denoiser,
    x: Any,
    *,
    condition: Any = None,
    steps: int | None = None,
    grid: str = "time",
    draws: int | None = None,
    levels: int | None = None,
    interval: tuple[float, float] = (-1.0, 1.0),
) -> NegativeElbo:
    """The variational bound on `-log p(x)` of each example, for any process.

    In continuous time, or in steps as the ancestral sampler takes them. Times are stratified, two independent draws in
    each part of the time; the difference of the two tells the error. For Gaussian processes in continuous time they are
    even in the log signal-to-noise ratio, and the squared error of a linear guess, whose expectation is known, is taken
    off the denoiser's: both change the variance only.

    With the exact denoiser the bound in continuous time is the entropy of the data, but for the ends of time. Steps
    cost more: about `L^2 / (4 steps)` nats a number of the data, where L is the log ratio at time 0, for steps that are
    even in the log ratio and need not go below a ratio of one (`L = 15`, the default of `variance_preserving`: 0.11
    nats with 1000 steps from 15 to -15); and far more for steps even in time where the schedule is steep at its start.

    Args:
      key: random key; example i has one folded from i.
      process: a noising process.
      denoiser: `(x, t, condition) -> output` of one example.
      x: (example, *shape).
      condition: pytree with a leading axis (example, ...), or None.
      steps: of a model in discrete time; None for continuous time.
      grid: of these steps, as of `ancestral`: "time" or, for Gaussian processes, "log_ratio".
      draws: evaluations of the denoiser an example, an even number; with `steps`, two for every step by default, else
        128.
      levels: for a Gaussian process with independent noise, x are whole numbers below it, which stand for the middles
        of as many parts of `interval`; the bound is on the log of their probability, with the reconstruction
        `p(x | x_0) ~ Normal(x_0 / alpha; middle, (sigma / alpha)^2)`, normalised over the levels.
      interval: lower and upper end.

    Returns:
      `NegativeElbo`: in nats, of a density for continuous data, else of a probability.

    Raises:
      TypeError: if the process is none, has no bound, or is not Gaussian with `levels`.
      ValueError: for an unknown grid, or one that is not for the process; if x or a condition has the wrong shape,
        `draws` is odd, or data are outside of the vocabulary.

    >>> from jaxprob.models.diffusion import gaussian_mixture_denoiser, variance_preserving
    >>> process = variance_preserving()
    >>> denoiser = gaussian_mixture_denoiser(process, [1.0], [[0.0]], [[1.0]])
    >>> bound = negative_elbo(jax.random.key(0), process, denoiser, jnp.array([[0.0], [3.0]]))
    >>> bool(jnp.all(jnp.abs(bound.nats - jnp.array([0.919, 5.419])) < 4 * bound.standard_error))
    True

    Source: Kingma et al. (2021), equations 11 to 18; Ho, Jain & Abbeel (2020), equation 5.
    """
    name = "diffusion.negative_elbo"
    key = core.as_key(key, name)
    check_process(name, process)
    if type(process).bound_ends is NoisingProcess.bound_ends:
        todo = "A stochastic interpolant has none; Gaussian processes, flow_matching() among them, have one"
        raise core.bad_type(name, "process", core.describe(process), "a process with a variational bound", todo)
    if steps is not None:
        core.check_whole(name, steps=steps)
    if draws is None:
        draws = 128 if steps is None else 2 * steps
    if grid not in GRIDS[:2]:
        raise core.bad_value(name, "grid", core.describe(grid), f"one of {GRIDS[:2]}")
    if grid != "time" and (steps is None or not isinstance(process, Gaussian)):
        got = f"{grid!r} " + ("without steps" if steps is None else f"for {type(process).__name__}")
        raise core.bad_value(
            name, "grid", got, "'time'", "Continuous time has no steps, and the grid is for Gaussian ones"
        )
    core.check_whole(name, least=2, draws=draws)
    if draws % 2:
        raise core.bad_value(name, "draws", draws, "an even number", "Two of each part of the time tell the error")
    if levels is not None:
        if not isinstance(process, Gaussian) or not isinstance(process.noise, White):
            raise core.bad_type(name, "process", core.describe(process), "Gaussian with independent noise for levels")
        interval = _check_levels(name, x, levels, interval)
    _check(name, process, denoiser, x, condition)
    if steps is None and isinstance(process, Gaussian):
        grid = "log_ratio"
    function = core.as_partial(denoiser)
    return _negative_elbo(key, process, function, x, condition, steps, grid, draws // 2, levels, interval)


@functools.partial(jax.jit, static_argnames=("steps", "grid", "parts", "levels", "interval"))
def _negative_elbo(
    key: core.Key,
    process: NoisingProcess,
    denoiser: Any,
    x: Any,
    condition: Any,
    steps: int | None,
    grid: str,
    parts: int,
    levels: int | None,
    interval: tuple[float, float],
) -> NegativeElbo:
    count = x.shape[0]
    indices = jnp.arange(count)
    data = x if levels is None else _middles(x, levels, interval)

    def at(share: jax.Array) -> jax.Array:
        """The time at a share of the way from data to noise."""
        if grid == "time":
            return share
        assert isinstance(process, Gaussian)
        first, last = process.log_ratio(0.0), process.log_ratio(1.0)
        return process.schedule.inverse(first + (last - first) * share.astype(first.dtype))

    def term(part: jax.Array, index: jax.Array, which: jax.Array, x0: Any, condition: Any) -> jax.Array:
        """The rate of the bound at a random time of a part."""
        own = core.fold(key, index, 1, part, which)
        dtype = jnp.result_type(float)
        u = (part.astype(dtype) + core.random.uniform(core.fold(own, 0), (), dtype)) / parts
        if steps is not None:
            # Each step has its part, or a part has several; rounding must not lead out of the range.
            i = part.astype(dtype) if parts == steps else jnp.clip(jnp.floor(u * steps), 0, steps - 1)
            t, s = at((i + 1) / steps), at(i / steps)
        else:
            t = s = at(u)
        xt = process.corrupt(core.fold(own, 1), x0, t)
        output = process.output(denoiser, xt, t, condition, jnp.shape(x0))
        if isinstance(process, Gaussian):
            # Half of this for each unit of the log ratio, whatever the schedule.
            if steps is not None:
                length = steps * jnp.expm1(process.log_ratio(s) - process.log_ratio(t))
            else:
                length = process.log_ratio(0.0) - process.log_ratio(1.0)
            error = process.expected_error(output, x0, xt, t)
            return 0.5 * length.astype(error.dtype) * error
        if steps is None:
            return process.bound_rate(output, x0, xt, t)
        return steps * process.step_divergence(output, x0, xt, t, s, core.fold(own, 2))

    def ends(index: jax.Array, which: jax.Array, x0: Any, condition: Any) -> jax.Array:
        own = core.fold(key, index, 0, which)
        if levels is not None:
            assert isinstance(process, Gaussian)
            return process.prior_divergence(x0) + _reconstruction(own, process, x0, levels, interval)
        return process.bound_ends(x0, own, lambda xt, t: process.output(denoiser, xt, t, condition, jnp.shape(x0)))

    def twice(function: Any) -> Any:
        """A function of (index, which, ...), mapped over examples and over two draws of each."""
        inner = jax.vmap(function, (0, None, 0, 0))
        return jax.vmap(inner, (None, 0, None, None))

    pair = jnp.arange(2)
    first, second = twice(ends)(indices, pair, data, condition)

    def one_part(sums: Any, part: jax.Array) -> tuple[Any, None]:
        a, b = twice(functools.partial(term, part))(indices, pair, data, condition)
        total, squares = sums
        return (total + 0.5 * (a + b), squares + 0.25 * (a - b) ** 2), None

    zero = jnp.zeros_like(first)
    (total, squares), _ = scan.scan(one_part, (zero, zero), jnp.arange(parts))
    nats = total / parts + 0.5 * (first + second)
    return NegativeElbo(nats, jnp.sqrt(squares / parts**2 + 0.25 * (first - second) ** 2))


def _reconstruction(
    key: core.Key, process: Gaussian, x0: jax.Array, levels: int, interval: tuple[float, float]
) -> jax.Array:
    """-log p(level | x at time 0) of the levels with middles x0, (), for one draw of the latter."""
    noise = core.random.normal(key, x0.shape, x0.dtype)
    scale = jnp.exp(-0.5 * process.log_ratio(0.0)).astype(x0.dtype)
    middles = _middles(jnp.arange(levels), levels, interval).astype(x0.dtype)
    # Of seen - middle in units of the noise, and for the true level this is the noise itself.
    away = (x0[..., None] - middles.reshape(*[1] * x0.ndim, -1)) / scale + noise[..., None]
    return jnp.sum(0.5 * noise**2 + core.logsumexp(-0.5 * away**2, -1))


# The likelihood.


def log_likelihood(
    process: Gaussian,
    denoiser: Denoiser,
    x: Any,
    *,
    condition: Any = None,
    steps: int | None = None,
    tolerance: float = 1e-5,
    max_steps: int = 1000,
    probes: int | None = None,
    key: core.Key | None = None,
) -> LogLikelihood:
    """Log densities of examples under the law that the probability-flow equation makes of the prior.

    `log p(x) = log p(x_1) + (integral of the divergence of the velocity)`, along the solution that starts at x. It is
    the density of the model: its prior knows no data, and what is left of them at time 1 is an error, as is the noise
    of time 0. For data of mean and size below one both are below 1e-3 nats with the default ends of all processes; with
    noise scales from 0.002 to 80 in place of 0.001 to 2000, `elucidated` is 0.01 off. The trace is exact, by as many
    directional derivatives as an example has numbers, or estimated from random probes without bias.

    Args:
      process: a Gaussian process.
      denoiser: `(x, t, condition) -> output` of one example.
      x: (example, *shape).
      condition: pytree with a leading axis (example, ...), or None.
      steps: of a Runge-Kutta method of order five, even in the log signal-to-noise ratio, with six evaluations each;
        results then have reverse-mode derivatives. None for steps that suit the tolerance.
      tolerance: error of a step, by its estimate, as a share of one plus the size of a number, where noise has size
        one.
      max_steps: the most steps, failed ones included.
      probes: number of random signs vectors for the trace; None for the exact trace.
      key: random key, for probes.

    Returns:
      `LogLikelihood`.

    Raises:
      TypeError: if the process is not Gaussian, or there are probes and no key.
      ValueError: if x or a condition has the wrong shape, or a number is out of range.

    >>> from jaxprob.models.diffusion import gaussian_mixture_denoiser, variance_preserving
    >>> process = variance_preserving()
    >>> denoiser = gaussian_mixture_denoiser(process, [1.0], [[0.0]], [[1.0]])
    >>> result = log_likelihood(process, denoiser, jnp.array([[0.0], [3.0]]))
    >>> [round(float(value), 3) for value in result.log_likelihood]
    [-0.919, -5.419]

    Source: Song et al. (2021), equations 39 and 40.
    """
    name = "diffusion.log_likelihood"
    if not isinstance(process, Gaussian):
        raise core.bad_type(name, "process", core.describe(process), "a Gaussian process", "Or take negative_elbo")
    x = core.as_float(x)
    _check(name, process, denoiser, x, condition)
    core.check_positive(name, tolerance=tolerance)
    core.check_whole(name, max_steps=max_steps)
    if steps is not None:
        core.check_whole(name, steps=steps)
    if probes is not None:
        core.check_whole(name, probes=probes)
        key = core.as_key(key, name)
    return _log_likelihood(process, core.as_partial(denoiser), x, condition, key, steps, tolerance, max_steps, probes)


@functools.partial(jax.jit, static_argnames=("steps", "max_steps", "probes"))
def _log_likelihood(
    process: Gaussian,
    denoiser: Any,
    x: jax.Array,
    condition: Any,
    key: Any,
    steps: int | None,
    tolerance: Any,
    max_steps: int,
    probes: int | None,
) -> LogLikelihood:
    first, last = process.log_ratio(0.0), process.log_ratio(1.0)
    wide = core.accumulator_dtype(x.dtype)

    def one(x0: jax.Array, condition: Any, index: jax.Array) -> LogLikelihood:
        shape, size = x0.shape, x0.size
        slope = flow_slope(process, lambda x, t: process.output(denoiser, x, t, condition, shape))
        if probes is None:
            vectors = jnp.eye(size, dtype=x0.dtype)
        else:
            vectors = core.random.rademacher(core.fold(key, index), (probes, size), x0.dtype)
        vectors = vectors.reshape(-1, *shape)

        def both(log_ratio: jax.Array, state: Any) -> Any:
            velocity, derivative = jax.linearize(functools.partial(slope, log_ratio), state[0])
            products = jax.vmap(lambda vector: jnp.sum((vector * derivative(vector)).astype(wide)))(vectors)
            return velocity, jnp.sum(products, keepdims=True) if probes is None else products

        y = x0 * jnp.exp(0.5 * core.log_sigmoid(first)).astype(x0.dtype)
        state = y, jnp.zeros((1 if probes is None else probes,), wide)
        if steps is not None:
            solution = fixed_steps(both, state, first, last, steps)
        else:
            solution = controlled_steps(both, state, first, last, tolerance, max_steps)
        y, gained = solution.y
        stretch = spread(process, last).astype(x0.dtype)
        latent = y * stretch
        # Of x / alpha at time 0, by way of y at both ends.
        fixed = process.prior_log_prob(latent).astype(wide) + size * jnp.log(stretch).astype(wide)
        values = fixed + 0.5 * size * core.log_sigmoid(first).astype(wide) + gained
        error = jnp.zeros((), wide) if probes is None else jnp.std(values, ddof=1) / math.sqrt(probes)
        value = jnp.where(solution.reached, jnp.mean(values), jnp.nan)
        return LogLikelihood(value, error, latent, solution.reached, solution.evaluations)

    return jax.vmap(one)(x, condition, jnp.arange(x.shape[0]))


# Whole numbers as continuous data.


def _check_levels(name: str, x: Any, levels: Any, interval: Any) -> tuple[float, float]:
    """The interval as floats, after checks of it, of the number of levels, and of data where they are known."""
    core.check_whole(name, least=2, levels=levels)
    pair = isinstance(interval, (tuple, list)) and len(interval) == 2 and all(map(core.is_number, interval))
    if not pair or not -math.inf < interval[0] < interval[1] < math.inf:
        raise core.bad_value(name, "interval", core.describe(interval), "two numbers in order")
    if x is not None:
        if not jnp.issubdtype(jnp.result_type(x), jnp.integer):
            raise core.bad_type(name, "x", f"of dtype {jnp.result_type(x)}", "whole numbers")
        if not isinstance(x, jax.core.Tracer) and not np.all((np.asarray(x) >= 0) & (np.asarray(x) < levels)):
            raise core.bad_value(name, "x", "outside of the levels", f"whole numbers from 0 to {levels - 1}")
    return float(interval[0]), float(interval[1])


def _middles(x: jax.Array, levels: int, interval: tuple[float, float]) -> jax.Array:
    low, high = interval
    return low + (high - low) / levels * (x.astype(jnp.result_type(float)) + 0.5)


def _log_volume(size: int, levels: int, interval: tuple[float, float]) -> float:
    """Of the part of space that stands for an example."""
    return size * math.log((interval[1] - interval[0]) / levels)


def dequantize(
    key: core.Key, x: Any, levels: int, interval: tuple[float, float] = (-1.0, 1.0)
) -> tuple[jax.Array, float]:
    """Whole numbers as continuous data: each is drawn evenly from its part of an interval.

    The log of the probability of an example is at least the expected log density of what is drawn, plus the log volume
    of its part.

    Args:
      key: random key.
      x: (*shape), whole numbers from 0 to levels - 1; one example, whose shape counts for the volume.
      levels: number of equal parts.
      interval: lower and upper end.

    Returns:
      data of the same shape, and the log volume.

    Raises:
      TypeError: if x are no whole numbers.
      ValueError: if x are known to be outside of the levels, or the interval is none.

    >>> y, log_volume = dequantize(jax.random.key(0), jnp.array([0, 255]), 256)
    >>> bool(y[0] < -0.99), bool(y[1] > 0.99), round(log_volume, 3)
    (True, True, -9.704)

    Source: Theis, van den Oord & Bethge (2016), section 3.1.
    """
    name = "diffusion.dequantize"
    key = core.as_key(key, name)
    x = jnp.asarray(x)
    low, high = _check_levels(name, x, levels, interval)
    dtype = jnp.result_type(float)
    inside = core.random.uniform(key, x.shape, dtype) - 0.5
    width = (high - low) / levels
    return _middles(x, levels, (low, high)) + width * inside, _log_volume(x.size, levels, (low, high))


def bits_per_dimension(
    nats: Any, shape: Any, levels: int | None = None, interval: tuple[float, float] = (-1.0, 1.0)
) -> jax.Array:
    """Negative log likelihoods in nats of an example as bits of each of its numbers.

    Args:
      nats: any shape.
      shape: of an example.
      levels: where the nats are of the density of data that `dequantize` made with so many levels: the bits are of the
        whole numbers then.
      interval: as of `dequantize`.

    Raises:
      ValueError: if the shape has no numbers, or the levels or the interval are none.

    >>> float(bits_per_dimension(0.0, (8, 8), levels=256, interval=(0.0, 1.0)))  # an even density
    8.0

    Source: Theis, van den Oord & Bethge (2016), section 3.1.
    """
    name = "diffusion.bits_per_dimension"
    size = math.prod(core.as_shape(name, shape))
    if not size:
        raise core.bad_value(name, "shape", shape, "an example with numbers")
    nats = core.as_float(nats)
    if levels is not None:
        nats = nats - _log_volume(size, levels, _check_levels(name, None, levels, interval))
    return nats / (size * math.log(2))
