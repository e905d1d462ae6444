"""Single-site kernels for discrete positions: Gibbs, and its Metropolized form, which never proposes to stay.

Positions are pytrees of integers (or booleans); a site is one of their scalars, with values 0 to its number of
categories less one. A site's conditional law comes from the log density at all its values, in one batch.

Source: Geman & Geman (1984); Liu (1996), "Peskun's theorem and a modified discrete-state Gibbs sampler".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.inference.mcmc._metropolis import MetropolisState, check_callable, initial, state_at

_Sweep = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # values, log density, sums of rates and of changes
_Update = Callable[[core.Key, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class DiscreteInfo(NamedTuple):
    """What happened in one sweep; every field is a scalar.

    Attributes:
      acceptance_rate: mean over the sites visited of the probability with which the proposal was accepted.
      changed: fraction of the visits that changed their site.
      log_density: of the new state.
    """

    acceptance_rate: jax.Array
    changed: jax.Array
    log_density: jax.Array


class Sites(NamedTuple):
    """A discrete position as one vector of sites.

    Attributes:
      values: (sites,), int32.
      unravel: `(sites,) -> position` with the shapes and dtypes of the user's pytree.
      categories: (sites,), known integers: how many values each site has.
      leaves: per leaf, how many sites it has.
    """

    values: jax.Array
    unravel: Callable[[jax.Array], Any]
    categories: np.ndarray
    leaves: tuple[int, ...]

    @property
    def possible(self) -> np.ndarray:
        """(sites, most categories), bool: which values a site may have."""
        return np.arange(self.categories.max(initial=1))[None, :] < self.categories[:, None]


def discrete_gibbs(log_density: core.LogDensity, num_categories: Any, *, order: str = "systematic") -> core.Algorithm:
    """Single-site Gibbs: one step visits as many sites as there are and draws each from its conditional law.

    A step evaluates the log density sites * categories times, all categories of a site at once.

    Args:
      log_density: `position -> scalar`, of a pytree of integer or boolean arrays; -inf where a position is impossible,
        and NaN counts as -inf.
      num_categories: an integer, or a pytree like the position of integers (or of arrays of them that broadcast to the
        leaf): sites take the values 0 to `num_categories - 1`. Known numbers, not traced: they are a shape.
      order: "systematic", the sites in flattening order, or "random", as many sites as there are, each drawn uniformly:
        then a step is reversible.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `DiscreteInfo`.

    Raises:
      TypeError: if `log_density` is no function, or, at `init`, a leaf is not of integers.
      ValueError: for a number of categories below 1, or an unknown order.

    >>> kernel = discrete_gibbs(lambda x: (x[1:] == x[:-1]).sum() * 0.5, num_categories=3)
    >>> state = kernel.init(jnp.array([0, 2, 1, 0]), jax.random.key(0))
    >>> state, info = kernel.step(jax.random.key(1), state)
    >>> float(info.acceptance_rate)
    1.0

    Source: Geman & Geman (1984).
    """

    def update(key: core.Key, here: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
        # "high": plain Gumbel noise in float32 never exceeds 16, which drops values rarer than 1e-7.
        drawn = core.random.categorical(key, log_p, mode="high").astype(here.dtype)
        return jnp.where(jnp.any(log_p > -jnp.inf), drawn, here), jnp.ones((), log_p.dtype)

    return _single_site("discrete_gibbs", log_density, num_categories, order, update)


def metropolized_gibbs(
    log_density: core.LogDensity, num_categories: Any, *, order: str = "systematic"
) -> core.Algorithm:
    r"""Single-site Gibbs that never proposes the present value: less autocorrelation than that of `discrete_gibbs`.

    At a site with value x, propose y != x with probability p(y) / (1 - p(x)), p the conditional law, and accept with
    probability

    $$\min\left(1, \frac{1 - p(x)}{1 - p(y)}\right)$$

    Args:
      log_density: as of `discrete_gibbs`, and as many evaluations a step.
      num_categories: as of `discrete_gibbs`.
      order: as of `discrete_gibbs`. Systematic sweeps of a few binary sites without coupling may be periodic: a site
        whose values are equally probable flips in every sweep.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `DiscreteInfo`.

    Raises:
      TypeError: if `log_density` is no function, or, at `init`, a leaf is not of integers.
      ValueError: for a number of categories below 1, or an unknown order.

    >>> kernel = metropolized_gibbs(lambda x: (x[1:] == x[:-1]).sum() * 0.5, num_categories=3)
    >>> state = kernel.init(jnp.array([0, 2, 1, 0]), jax.random.key(0))
    >>> state, info = kernel.step(jax.random.key(1), state)
    >>> float(info.acceptance_rate) > 0.5
    True

    Source: Liu (1996).
    """

    def update(key: core.Key, here: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = jnp.arange(log_p.size, dtype=here.dtype)
        others = jnp.where(values == here, -jnp.inf, log_p)
        proposed = core.random.categorical(core.fold(key, 0), others, mode="high").astype(here.dtype)
        # log((1 - p(x)) / (1 - p(y))) as sums over the other values: no difference of nearly equal numbers.
        back = jnp.where(values == proposed, -jnp.inf, log_p)
        log_ratio = core.logsumexp(others) - core.logsumexp(back)
        possible = jnp.any(others > -jnp.inf)
        rate = jnp.where(possible, jnp.exp(jnp.minimum(log_ratio, 0)), 0)
        accepted = core.random.uniform(core.fold(key, 1), (), rate.dtype) < rate
        return jnp.where(accepted, proposed, here), rate

    return _single_site("metropolized_gibbs", log_density, num_categories, order, update)


def _single_site(
    function: str, log_density: core.LogDensity, num_categories: Any, order: str, update: _Update
) -> core.Algorithm:
    """Sweeps of `update(key, value (), log probabilities (categories,)) -> (new value (), acceptance rate ())`."""
    check_callable(function, log_density=log_density)
    check_categories(function, num_categories)
    if order not in ("systematic", "random"):
        raise core.bad_value(function, "order", core.describe(order), "'systematic' or 'random'")

    def init(position: Any, key: core.Key) -> MetropolisState:
        as_sites(function, position, num_categories)
        return initial(function, log_density, position)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, DiscreteInfo]:
        key, sites = core.as_key(key, function), as_sites(function, state.position, num_categories)
        dtype, number = state.log_density.dtype, sites.values.size
        possible = jnp.asarray(sites.possible)
        categories = jnp.arange(possible.shape[1], dtype=sites.values.dtype)
        if order == "random":
            visited = core.random.randint(core.fold(key, number), (number,), 0, number)
        else:
            visited = jnp.arange(number)

        def log_density_at(values: jax.Array) -> jax.Array:
            return state_at(function, log_density, sites.unravel(values)).log_density.astype(dtype)

        def visit(carry: _Sweep, index: jax.Array) -> _Sweep:
            values, current, rate, changed = carry
            site = visited[index]
            log_p = jax.vmap(lambda value: log_density_at(values.at[site].set(value)))(categories)
            log_p = jnp.where(possible[site] & ~jnp.isnan(log_p), log_p, -jnp.inf)
            here = values[site]
            there, accepted = update(core.fold(key, index), here, log_p)
            moved = there != here
            current = jnp.where(moved, log_p[there], current)
            return values.at[site].set(there), current, rate + accepted, changed + moved.astype(dtype)

        zero = jnp.zeros((), dtype)
        if not number:
            return state, DiscreteInfo(zero, zero, state.log_density)
        values, current, rate, changed = scan.repeat(visit, (sites.values, state.log_density, zero, zero), number)
        return MetropolisState(sites.unravel(values), current), DiscreteInfo(rate / number, changed / number, current)

    return core.Algorithm(init, step)


def check_categories(function: str, num_categories: Any) -> None:
    """Raises an error unless every leaf of `num_categories` holds known integers of at least 1."""
    for _, leaf in core.named_leaves(num_categories):
        if isinstance(leaf, jax.core.Tracer):
            raise core.bad_type(function, "num_categories", leaf, "known integers", "They are the shape of a table")
        if not np.issubdtype(np.asarray(leaf).dtype, np.integer) or np.any(np.asarray(leaf) < 1):
            raise core.bad_value(function, "num_categories", leaf, "integers of at least 1")


def as_sites(function: str, position: Any, num_categories: Any) -> Sites:
    """The sites of a position; raises an error if a leaf is not of integers or `num_categories` does not fit."""
    leaves, structure = jax.tree.flatten(position)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    names = [name for name, _ in core.named_leaves(position)]
    given: Any = jax.tree.structure(num_categories)
    if given == structure:
        counts = jax.tree.leaves(num_categories)
    elif jax.tree_util.all_leaves([num_categories]) and np.ndim(num_categories) == 0:
        counts = [num_categories] * len(leaves)
    else:
        raise core.bad_value(function, "num_categories", num_categories, f"an integer or a pytree {structure}")
    spread = []
    for name, leaf, count in zip(names, leaves, counts, strict=True):
        is_bool = leaf.dtype == bool
        if not is_bool and not jnp.issubdtype(leaf.dtype, jnp.integer):
            got = f"of dtype {leaf.dtype}"
            todo = "For a mixed position see mcmc.gibbs"
            raise core.bad_type(function, f"leaf {name!r} of the position", got, "integers or booleans", todo)
        try:
            spread.append(np.broadcast_to(np.asarray(count), leaf.shape).ravel())
        except ValueError:
            got, want = f"of shape {np.shape(count)}", f"a shape that broadcasts to {leaf.shape}"
            raise core.bad_value(function, f"num_categories of leaf {name!r}", got, want) from None
        most = 2 if is_bool else int(jnp.iinfo(leaf.dtype).max) + 1
        if np.any(spread[-1] > most):
            raise core.bad_value(
                function, f"num_categories of leaf {name!r}", count, f"at most {most} for {leaf.dtype}"
            )
    shapes, dtypes = [leaf.shape for leaf in leaves], [leaf.dtype for leaf in leaves]
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))

    def unravel(values: jax.Array) -> Any:
        parts = jnp.split(values, ends[:-1]) if ends else []
        rebuilt = [part.reshape(shape).astype(dtype) for part, shape, dtype in zip(parts, shapes, dtypes, strict=True)]
        return jax.tree.unflatten(structure, rebuilt)

    values = jnp.concatenate([jnp.zeros((0,), jnp.int32)] + [leaf.ravel().astype(jnp.int32) for leaf in leaves])
    categories = np.concatenate([np.zeros((0,), int), *spread]).astype(int)
    return Sites(values, unravel, categories, tuple(leaf.size for leaf in leaves))
