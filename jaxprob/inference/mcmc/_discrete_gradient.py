"""Discrete kernels that a gradient guides: Gibbs with gradients, and the discrete Langevin proposal.

One gradient of the log density, taken as a function of real numbers, estimates what each change of each site would do.
The estimate makes proposals only; Metropolis-Hastings with the log density itself keeps the kernels exact.

Source: Grathwohl et al. (2021), "Oops I took a gradient: scalable sampling for discrete distributions"; Zhang, Liu &
Liu (2022), "A Langevin-like sampler for discrete distributions"; Zanella (2020) for locally balanced proposals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._discrete import as_sites, check_categories
from jaxprob.inference.mcmc._hamiltonian import State, as_step_size
from jaxprob.inference.mcmc._log_density import LogDensity, as_log_density
from jaxprob.inference.mcmc._metropolis import accept


class DiscreteGradientInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      acceptance_rate: the probability with which this proposal was accepted.
      accepted: whether it was.
      changed: fraction of the sites that changed.
      num_gradients: evaluations of the log density with its gradient.
      log_density: of the new state.
    """

    acceptance_rate: jax.Array
    accepted: jax.Array
    changed: jax.Array
    num_gradients: jax.Array
    log_density: jax.Array


def gibbs_with_gradients(
    log_density: core.LogDensity, num_categories: Any, *, one_hot: bool = False, balancing: str = "sqrt"
) -> core.Algorithm:
    r"""Gibbs with gradients: proposes to change one site, the one and the value that the gradient thinks well of.

    With d(x, y) the estimate of log p(y) - log p(x), from x propose a neighbour y, which differs in one site, with

    $$q(y | x) \propto g(e^{d(x, y)})$$

    and accept or reject by Metropolis-Hastings. A step costs one log density with its gradient.

    Args:
      log_density: `position -> scalar`, of a pytree of integer or boolean arrays. It is called with floating-point
        arrays in their place, and must be differentiable there; d(x, y) is the gradient times the change. For two
        categories, and for ordered ones, that is what is wanted: `x * weights`, `x.astype(...)`, no `weights[x]` and no
        `x == 1`, whose gradient is zero and guides nothing. For unordered categories see `one_hot`.
      num_categories: an integer, or a pytree like the position of integers (or of arrays of them that broadcast to the
        leaf).
      one_hot: whether the log density takes, in place of each leaf of shape (...), the floating-point array (...,
        categories) that is one at the value of each site and zero elsewhere.
      balancing: g, "sqrt" for the square root or "barker" for t / (1 + t).

    Returns:
      Algorithm whose state is a `State` (its gradient is that of the floating-point position) and whose info is a
      `DiscreteGradientInfo`.

    Raises:
      TypeError: if `log_density` is no function, or, at `init`, does not take floating-point arrays.
      ValueError: for a number of categories below 1, or an unknown balancing function.

    >>> kernel = gibbs_with_gradients(lambda x: (x[1:] * x[:-1]).sum(), num_categories=2)
    >>> state = kernel.init(jnp.array([0, 1, 0, 0]), jax.random.key(0))
    >>> state, info = kernel.step(jax.random.key(1), state)
    >>> int(info.num_gradients)
    1

    Source: Grathwohl et al. (2021), algorithm 1; Zanella (2020) for other balancing functions.
    """
    name = "gibbs_with_gradients"
    if balancing not in ("sqrt", "barker"):
        raise core.bad_value(name, "balancing", core.describe(balancing), "'sqrt' or 'barker'")
    target = _Target(name, log_density, num_categories, one_hot)

    def logits(point: _Point) -> jax.Array:
        gains = 0.5 * point.gains if balancing == "sqrt" else core.log_sigmoid(point.gains)
        return jnp.where(point.elsewhere, gains, -jnp.inf)

    def step(key: core.Key, state: State) -> tuple[State, DiscreteGradientInfo]:
        key = core.as_key(key, name)
        here = target.point(state)
        forward = logits(here)
        if not forward.size:
            return target.stay(state)
        drawn = core.random.categorical(core.fold(key, 0), forward.ravel(), mode="high")
        site, value = jnp.divmod(drawn, forward.shape[1])
        there = target.point(target.at(here.values.at[site].set(value.astype(here.values.dtype)), state))
        back = logits(there)
        log_q = forward[site, value] - core.logsumexp(forward)
        log_q_back = back[site, here.values[site]] - core.logsumexp(back)
        return target.choose(core.fold(key, 1), state, here, there, log_q_back - log_q)

    return core.Algorithm(target.init, step)


def discrete_langevin(
    log_density: core.LogDensity,
    num_categories: Any,
    step_size: Any = 0.2,
    *,
    adjusted: bool = True,
    one_hot: bool = False,
) -> core.Algorithm:
    r"""The discrete Langevin proposal: all sites at once, each on its own, by a step along the gradient.

    $$q(y | x) = \prod_i q_i(y_i | x), \qquad q_i(y_i | x) \propto \exp\left(\tfrac{1}{2} d_i(x, y_i)
    - \frac{|y_i - x_i|^2}{2 \alpha}\right)$$

    with step size alpha, and d_i the gradient times the change of site i. A step costs one log density with its
    gradient.

    Args:
      log_density: as of `gibbs_with_gradients`.
      num_categories: as of `gibbs_with_gradients`.
      step_size: (), alpha; an array or a tracer. Small ones change few sites. `step_size_warmup` tunes it, for an
        acceptance rate of 0.5 to 0.6.
      adjusted: whether to accept or reject by Metropolis-Hastings (DMALA), which makes it exact. Without (DULA) every
        proposal is taken that has a density, and the law of the draws is off by more the larger the step size.
      one_hot: as of `gibbs_with_gradients`; |y_i - x_i|^2 is then 2 for any change.

    Returns:
      Algorithm whose state is a `State` (its gradient is that of the floating-point position) and whose info is a
      `DiscreteGradientInfo`.

    Raises:
      TypeError: if `log_density` is no function, or, at `init`, does not take floating-point arrays.
      ValueError: for a number of categories below 1, or a step size that is not above zero.

    >>> kernel = discrete_langevin(lambda x: (x[1:] * x[:-1]).sum(), num_categories=2, step_size=0.5)
    >>> state = kernel.init(jnp.array([0, 1, 0, 0]), jax.random.key(0))
    >>> state, info = kernel.step(jax.random.key(1), state)
    >>> int(info.num_gradients)
    1

    Source: Zhang, Liu & Liu (2022), algorithm 1.
    """
    name = "discrete_langevin"
    step_size = as_step_size(step_size, name)
    target = _Target(name, log_density, num_categories, one_hot)

    def log_probabilities(point: _Point) -> jax.Array:
        alpha = step_size.astype(point.gains.dtype)
        logits = jnp.where(point.possible, 0.5 * point.gains - point.distances / (2 * alpha), -jnp.inf)
        return logits - core.logsumexp(logits, axis=1, keepdims=True)

    def of(log_q: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.take_along_axis(log_q, jnp.expand_dims(values, 1), axis=1))

    def step(key: core.Key, state: State) -> tuple[State, DiscreteGradientInfo]:
        key = core.as_key(key, name)
        here = target.point(state)
        forward = log_probabilities(here)
        values = core.random.categorical(core.fold(key, 0), forward, axis=1, mode="high").astype(here.values.dtype)
        there = target.point(target.at(values, state))
        correction = of(log_probabilities(there), here.values) - of(forward, values)
        if not adjusted:  # cancels the difference of log densities: every proposal that has one is taken
            has_density = jnp.isfinite(there.state.log_density)
            correction = jnp.where(has_density, state.log_density - there.state.log_density, -jnp.inf)
        return target.choose(core.fold(key, 1), state, here, there, correction)

    return core.Algorithm(target.init, step)


class _Point(NamedTuple):
    """A position, and what its gradient says of changes; tables are (sites, most categories)."""

    state: State
    values: jax.Array  # (sites,), int32
    gains: jax.Array  # estimates of the change of the log density
    distances: jax.Array  # squared distances of the changes
    possible: jax.Array  # bool, whether the site has that value at all
    elsewhere: jax.Array  # bool, possible and another value than the present one


class _Target:
    """A log density on integers that has a gradient on real numbers."""

    def __init__(self, function: str, log_density: Any, num_categories: Any, one_hot: bool) -> None:
        self._density: LogDensity = as_log_density(log_density, function)
        check_categories(function, num_categories)
        self._function, self._num_categories, self._one_hot = function, num_categories, one_hot

    def init(self, position: Any, key: core.Key) -> State:
        position = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), position)
        sites = as_sites(self._function, position, self._num_categories)
        return self._evaluate(sites.values, position, self._dtype(position))

    def at(self, values: jax.Array, state: State) -> State:
        """The state at other values of the sites."""
        return self._evaluate(values, state.position, core.result_dtype(state.log_density_gradient))

    def point(self, state: State) -> _Point:
        """What the gradient of a state says of changes."""
        sites = as_sites(self._function, state.position, self._num_categories)
        values, most = sites.values, sites.possible.shape[1]
        categories = jnp.arange(most, dtype=values.dtype)
        change = jnp.expand_dims(categories, 0) - jnp.expand_dims(values, 1)
        dtype = state.log_density.dtype
        leaves = jax.tree.leaves(state.log_density_gradient)
        if self._one_hot:
            tables = [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]
            padded = [jnp.pad(table, ((0, 0), (0, most - table.shape[1]))) for table in tables]
            slopes = jnp.concatenate([jnp.zeros((0, most), dtype)] + [table.astype(dtype) for table in padded])
            gains = slopes - jnp.take_along_axis(slopes, jnp.expand_dims(values, 1), axis=1)
            distances = jnp.where(change == 0, 0, 2).astype(dtype)
        else:
            slope = jnp.concatenate([jnp.zeros((0,), dtype)] + [leaf.ravel().astype(dtype) for leaf in leaves])
            gains = jnp.expand_dims(slope, 1) * change.astype(dtype)
            distances = (change * change).astype(dtype)
        possible = jnp.asarray(sites.possible)
        return _Point(state, values, gains, distances, possible, possible & (change != 0))

    def choose(
        self, key: core.Key, state: State, here: _Point, there: _Point, correction: jax.Array
    ) -> tuple[State, DiscreteGradientInfo]:
        """One of two points by Metropolis-Hastings, and what happened."""
        chosen, info = accept(key, state, there.state, correction)
        changed = jnp.mean((here.values != there.values).astype(info.acceptance_rate.dtype)) if here.values.size else 0
        changed = jnp.where(info.accepted, changed, jnp.zeros_like(info.acceptance_rate))
        return chosen, DiscreteGradientInfo(
            info.acceptance_rate, info.accepted, changed, jnp.int32(1), info.log_density
        )

    def stay(self, state: State) -> tuple[State, DiscreteGradientInfo]:
        """A transition where there is nothing to propose."""
        zero = jnp.zeros_like(state.log_density)
        return state, DiscreteGradientInfo(zero, jnp.asarray(False), zero, jnp.int32(0), state.log_density)

    def _evaluate(self, values: jax.Array, like: Any, dtype: Any) -> State:
        sites = as_sites(self._function, like, self._num_categories)
        position = sites.unravel(values)
        relaxed = jax.tree.map(lambda leaf: leaf.astype(dtype), position)
        if self._one_hot:
            widths, start = [], 0
            for length in sites.leaves:
                widths.append(int(sites.categories[start : start + length].max(initial=1)))
                start += length
            leaves, structure = jax.tree.flatten(position)
            hot = [jax.nn.one_hot(x.astype(int), width, dtype=dtype) for x, width in zip(leaves, widths, strict=True)]
            relaxed = jax.tree.unflatten(structure, hot)
        try:
            value, gradient = self._density.value_and_gradient(relaxed)
        except TypeError as error:
            got = "a function that fails on floating-point arrays"
            todo = f"Write it as arithmetic of the values, or see one_hot (it said: {str(error).splitlines()[0]})"
            raise core.bad_type(self._function, "log_density", got, "one of integers or real numbers", todo) from error
        # Any estimate makes a valid proposal: where there is no gradient all changes are alike.
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, jnp.zeros_like(g)), gradient)
        return State(position, value.astype(core.accumulator_dtype(value.dtype)), gradient)

    def _dtype(self, position: Any) -> Any:
        """Of the floating-point arrays: that of the log density, where it can be asked."""
        if self._one_hot:
            return jnp.result_type(float)
        value: Callable[[Any], jax.Array] = lambda q: core.as_float(self._density(q))  # noqa: E731
        return jax.eval_shape(value, position).dtype
