"""Coordinate ascent in conditionally conjugate models, from the expected log joint alone.

Where the log joint is linear in the sufficient statistics of each block with the others fixed, the best factor q_j is
of the block's exponential family, and its natural parameters are the gradient of the expected log joint with respect
to the block's expected statistics. Autodiff finds them: there is nothing to derive.

Source: Ghahramani & Beal (2001), "Propagation algorithms for variational Bayesian learning"; Blei, Kucukelbir &
McAuliffe (2017), "Variational inference: a review for statisticians", section 4; Hoffman, Johnson & Tran (2018),
"Autoconj: recognizing and exploiting conjugacy without a domain-specific language", for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.distributions import Distribution
from jaxprob.inference.vi._blocks import Block

Blocks = tuple[tuple[str, Block], ...]


class CoordinateState(NamedTuple):
    """The state of coordinate ascent.

    Attributes:
      position: name to natural parameters of each block's factor.
    """

    position: dict[str, Any]


class CoordinateInfo(NamedTuple):
    """What a sweep tells.

    Attributes:
      elbo: (), after the sweep; it never falls but for rounding.
      change: (), the largest change of an expected statistic in the sweep, relative to the largest of its kind.
      finite: (), bool, whether the bound is.
    """

    elbo: jax.Array
    change: jax.Array
    finite: jax.Array


class ConjugateFit(NamedTuple):
    """Factors at an optimum.

    Attributes:
      distributions: name to the factor of each block.
      expected: name to the expected statistics of each.
      elbo: (), in nats.
      elbos: (max_sweeps,), after each sweep; 0 from `num_sweeps` on.
      num_sweeps: (), int32.
      converged: (), bool, whether the last sweep changed nothing beyond the tolerance.
    """

    distributions: dict[str, Distribution]
    expected: dict[str, Any]
    elbo: jax.Array
    elbos: jax.Array
    num_sweeps: jax.Array
    converged: jax.Array


def coordinate_ascent(log_joint: Callable[[dict[str, Any]], Any], blocks: Mapping[str, Block]) -> core.Algorithm:
    r"""Coordinate ascent variational inference, as an `Algorithm`; a step updates each block once, in order.

    $$\eta_j = \nabla_{E[T_j]} E_q[\log p(x, data)]$$

    Args:
      log_joint: from expected statistics by name of the block (`s["mu"].mean`, `s["tau"].log`) to the expected log
        joint density, a scalar: what is written for a log density with each product of statistics of several blocks
        replaced by the product of their expectations. Constants may be left out; they are missing in the bound then.
      blocks: name to the family of each factor, such as `vi.GammaBlock()`.

    Returns:
      `Algorithm(init, step)`: `init(position, key)` with natural parameters by name, for all blocks or for some, or
      None; `CoordinateState`, `CoordinateInfo`.

    Raises:
      TypeError: if a block is none.
      ValueError: by `init`, if the log joint is not linear in the statistics of a block.

    >>> from jaxprob.inference import vi
    >>> y = jnp.array([1.0, 2.0, 3.0])
    >>> def log_joint(s):
    ...     squares = y**2 - 2 * y * s["mu"].mean + s["mu"].square
    ...     return -0.5 * s["mu"].square + jnp.sum(0.5 * s["tau"].log - 0.5 * s["tau"].mean * squares) - s["tau"].mean
    >>> found = vi.fit_conjugate(log_joint, {"mu": vi.NormalBlock(), "tau": vi.GammaBlock()}, jax.random.key(0))
    >>> bool(found.converged), round(float(found.distributions["mu"].mean()), 2)
    (True, 1.45)

    Source: Blei et al. (2017), algorithm 1.
    """
    named = _named("coordinate_ascent", log_joint, blocks)
    return core.Algorithm(core.Bound(_init, log_joint, named), core.Bound(_step, log_joint, named))


def fit_conjugate(
    log_joint: Callable[[dict[str, Any]], Any],
    blocks: Mapping[str, Block],
    key: core.Key,
    *,
    initial: dict[str, Any] | None = None,
    max_sweeps: int = 1000,
    tolerance: float = 1e-5,
) -> ConjugateFit:
    """Runs `vi.coordinate_ascent` to an optimum, which may be a local one.

    Args:
      log_joint: see `vi.coordinate_ascent`.
      blocks: name to family.
      key: random key, of the start.
      initial: natural parameters to start from, for all blocks or for some.
      max_sweeps: at most.
      tolerance: of the relative change of expected statistics in a sweep.

    Returns:
      a `ConjugateFit`.

    Raises:
      ValueError: as `vi.coordinate_ascent`, or for numbers out of range.
    """
    name = "fit_conjugate"
    core.check_whole(name, max_sweeps=max_sweeps)
    core.check_positive(name, tolerance=tolerance)
    key = core.as_key(key, name)
    named = _named(name, log_joint, blocks)
    state = _init(log_joint, named, initial, core.fold(key, 0))
    return _run(log_joint, named, max_sweeps, state, float(tolerance))


def _named(function: str, log_joint: Any, blocks: Any) -> Blocks:
    if not callable(log_joint):
        raise core.bad_type(function, "log_joint", log_joint, "a function of expected statistics by block")
    if not isinstance(blocks, Mapping) or not blocks:
        raise core.bad_type(
            function, "blocks", blocks, "a dict from names to families", 'Such as {"tau": vi.GammaBlock()}'
        )
    for name, block in blocks.items():
        if not isinstance(block, Block):
            raise core.bad_type(function, f"block {name!r}", block, "a family", "Such as vi.NormalBlock((3,))")
    return tuple(blocks.items())


def _init(log_joint: Callable[..., Any], named: Blocks, position: Any, key: core.Key) -> CoordinateState:
    given = {} if position is None else dict(position)
    if unknown := [name for name in given if name not in dict(named)]:
        raise core.bad_value("coordinate_ascent", "position", f"with {unknown[0]!r}", f"blocks {[n for n, _ in named]}")
    state = {
        name: given[name] if name in given else block.start(core.fold(core.as_key(key, "coordinate_ascent"), i))
        for i, (name, block) in enumerate(named)
    }
    state = {name: jax.tree.map(jnp.asarray, natural) for name, natural in state.items()}
    for name, block in named:
        like = jax.eval_shape(block.start, key)
        core.check_same_structure("coordinate_ascent", f"position[{name!r}]", state[name], like, dtypes=False)
    _check_linear(log_joint, named, state)
    return CoordinateState(state)


def _check_linear(log_joint: Callable[..., Any], named: Blocks, state: dict[str, Any]) -> None:
    """Raises a `ValueError` for a block whose gradient depends on its own statistics, if that can be known now."""

    def gradients(state: dict[str, Any]) -> Any:
        expected = {name: block.expected(state[name]) for name, block in named}
        value = jax.eval_shape(log_joint, expected)
        if jnp.shape(value) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            got = f"{value.dtype} of shape {value.shape}"
            raise core.bad_value("coordinate_ascent", "the log joint", got, "one floating number", "Sum over all terms")
        return {
            name: [_gradient(log_joint, {**expected, name: _scaled(expected[name], by)}, name) for by in (1.0, 1.5)]
            for name, _ in named
        }

    for name, (one, other) in jax.jit(gradients)(state).items():
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            if isinstance(a, jax.core.Tracer):
                return
            size = jnp.max(jnp.abs(jnp.stack([a, b])), initial=0)
            if bool(jnp.max(jnp.abs(a - b), initial=0) > 1e-3 * size):
                todo = "Write it in expected statistics of the block, such as square for E[x^2] rather than mean**2"
                got = f"not linear in the statistics of block {name!r}"
                raise core.bad_value("coordinate_ascent", "the log joint", got, "linear in those of each block", todo)


def _scaled(statistics: Any, by: float) -> Any:
    return jax.tree.map(lambda leaf: by * leaf, statistics)


def _gradient(log_joint: Callable[..., Any], expected: dict[str, Any], name: str) -> Any:
    return jax.grad(lambda own: log_joint({**expected, name: own}))(expected[name])


def _bound(log_joint: Callable[..., Any], named: Blocks, state: dict[str, Any], expected: dict[str, Any]) -> jax.Array:
    return log_joint(expected) + sum(block.entropy(state[name], expected[name]) for name, block in named)


def _step(
    log_joint: Callable[..., Any], named: Blocks, key: core.Key | None, state: CoordinateState
) -> tuple[CoordinateState, CoordinateInfo]:
    natural = dict(state.position)
    before = {name: block.expected(natural[name]) for name, block in named}
    expected = dict(before)
    for name, block in named:
        natural[name] = block.symmetric(_gradient(log_joint, expected, name))
        expected[name] = block.expected(natural[name])
    elbo = _bound(log_joint, named, natural, expected)
    change = [
        jnp.max(jnp.abs(new - old), initial=0)
        / jnp.maximum(jnp.max(jnp.abs(new), initial=0), jnp.finfo(new.dtype).tiny)
        for new, old in zip(jax.tree.leaves(expected), jax.tree.leaves(before), strict=True)
    ]
    return CoordinateState(natural), CoordinateInfo(elbo, jnp.max(jnp.stack(change)), jnp.isfinite(elbo))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    log_joint: Callable[..., Any], named: Blocks, max_sweeps: int, state: CoordinateState, tolerance: jax.Array
) -> ConjugateFit:
    class Carry(NamedTuple):
        state: CoordinateState
        elbo: jax.Array
        change: jax.Array
        number: jax.Array

    def sweep(carry: Carry, index: jax.Array) -> tuple[Carry, jax.Array]:
        state, info = _step(log_joint, named, None, carry.state)
        return Carry(state, info.elbo, info.change, carry.number + 1), info.elbo

    def settled(carry: Carry) -> jax.Array:
        return ~(carry.change > jnp.asarray(tolerance, carry.change.dtype))  # a change that is NaN ends it too

    first = jax.eval_shape(lambda s: _step(log_joint, named, None, s)[1], state)
    start = Carry(
        state, jnp.zeros((), first.elbo.dtype), jnp.full((), jnp.inf, first.change.dtype), jnp.zeros((), jnp.int32)
    )
    last, elbos = scan.bounded(sweep, start, max_sweeps, max_sweeps, until=settled)
    found = last.state.position
    return ConjugateFit(
        distributions={name: block.distribution(found[name]) for name, block in named},
        expected={name: block.expected(found[name]) for name, block in named},
        elbo=last.elbo,
        elbos=elbos,
        num_sweeps=last.number,
        converged=(last.change <= jnp.asarray(tolerance, last.change.dtype)) & jnp.isfinite(last.elbo),
    )
