"""Belief propagation by particles: marginal laws of the nodes of a pairwise Markov random field, static or tracked.

    p(x | y) ~ prod_s M_s(dx_s) phi_s(x_s, y) prod_(a,b) psi_ab(x_a, x_b)

Every node has weighted particles. Messages are pulled: each is known where its receiver has particles, as a mixture of
pairwise potentials over the particles of its sender, so that no density is fitted to particles and beliefs become exact
as their number grows (on trees; on graphs with cycles they become those of belief propagation).

Source: Opipari et al. (2023), "DNBP: Differentiable nonparametric belief propagation", for factors that are learnt;
Desingh et al. (2019), "Efficient nonparametric belief propagation for pose estimation and manipulation of articulated
objects", for messages that are pulled; Ihler & McAllester (2009), "Particle belief propagation", for weights that make
them exact.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core, scan
from jaxprob.inference import smc
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.particle._markov_field import MarkovField, Wiring, longest_path, wiring_of
from jaxprob.inference.smc._feynman_kac import multiplied
from jaxprob.inference.smc._population import effective_size, weighted_moments

REDRAWS = 2  # of a field that can draw from its neighbours; more change little


class Beliefs(NamedTuple):
    """Marginal laws of all nodes, as weighted particles.

    Attributes:
      particles: pytree (node, particle, ...).
      log_weights: (node, particle), of each node summing to one.
      residual: (node,), total variation between the weights of the last two iterations: 0 on a tree, and near 0 on a
        graph with cycles where there were enough.
      failed: (node,), whether no particle was possible or a weight was NaN. The particles of such a node are equally
        weighted, and its neighbours hear from it as if it had observed and heard nothing.
    """

    particles: Any
    log_weights: jax.Array
    residual: jax.Array
    failed: jax.Array

    @property
    def weights(self) -> jax.Array:
        """(node, particle), of each node summing to one."""
        return jnp.exp(self.log_weights)

    @property
    def mean(self) -> Any:
        """Pytree (node, ...)."""
        return jax.vmap(weighted_moments)(self.particles, self.weights)[0]

    @property
    def variance(self) -> Any:
        """Pytree (node, ...), entry by entry."""
        return jax.vmap(weighted_moments)(self.particles, self.weights)[1]

    @property
    def effective_sample_size(self) -> jax.Array:
        """(node,), of the weights."""
        return jax.vmap(effective_size)(self.log_weights)


def belief_propagation(
    key: core.Key,
    field: MarkovField,
    y: Any = None,
    *,
    particles: int = 300,
    iterations: int | None = None,
    redraws: int | None = None,
    scheme: smc.Scheme = smc.systematic,
) -> Beliefs:
    """The marginal law of every node given an observation, by nonparametric belief propagation.

    Particles are drawn from the initial law, and messages passed between them until they no longer change:
    `m_ts(x_s) = sum_i v_i psi(x_i, x_s)`, where v_i is the weight of a particle of t by its unary potential and the
    messages from all neighbours but s. A redraw takes new particles, in equal shares from the initial law and from each
    neighbour (one of its particles by its belief, moved by `sample_conditional`), and weights them by the density of
    that mixture. Time and memory are edges times particles squared.

    Weights are differentiable functions of the parameters of potentials. Which particle is chosen has no derivative,
    and what a redraw draws is held fixed: potentials are learnt as in importance sampling by a proposal that is given,
    even where the sampler has the same parameters.

    Args:
      key: random key.
      field: a `MarkovField`.
      y: pytree, what `log_unary` is given.
      particles: of each node.
      iterations: in which all messages are passed at once; by default one more than the longest of the shortest paths
        between two nodes, which is exact on a tree. Graphs with cycles may need more (see `residual`).
      redraws: how many, 0 or more; by default 2 where the field has `sample_conditional`, else 0.
      scheme: of resampling, `smc.systematic` or any that can draw another number than there are.

    Returns:
      `Beliefs`.

    Raises:
      TypeError: if the field is none.
      ValueError: for a number that is out of range, redraws without `sample_conditional`, or a potential that is not
        one number.

    >>> field = MarkovField(
    ...     nodes=2,
    ...     edges=((0, 1),),
    ...     initial=lambda key, node: jax.random.normal(key),
    ...     log_unary=lambda x, node, y: jnp.where(node == 0, -0.5 * (x - y) ** 2, 0.0),
    ...     log_pairwise=lambda a, b, edge: -0.5 * (a - b) ** 2,
    ... )
    >>> found = belief_propagation(jax.random.key(0), field, 2.5, particles=1000)
    >>> [f"{mean:.1f}" for mean in found.mean]
    ['1.0', '0.5']

    Source: Opipari et al. (2023); Ihler & McAllester (2009), for the weights.
    """
    name = "particle.belief_propagation"
    key = core.as_key(key, name)
    _check_field(name, field)
    core.check_whole(name, particles=particles)
    numbers = _numbers_of(name, field, iterations, redraws)
    base = _Base(None, jnp.zeros((field.nodes, particles)))
    return _run(key, field, base, y, *numbers, scheme)


def belief_step(
    key: core.Key,
    field: MarkovField,
    beliefs: Beliefs,
    y: Any = None,
    *,
    iterations: int | None = None,
    redraws: int | None = None,
    scheme: smc.Scheme = smc.systematic,
) -> Beliefs:
    """Beliefs at the next time, given one more observation: tracking.

    In place of the initial law of a node stands its belief of the time before, moved by `transition`, each node by
    itself. Without redraws no gradient goes back to earlier potentials, as resampling has no derivative; with them
    there is one through the density of what was carried on.

    Args:
      key: random key, another one at each time.
      field: a `MarkovField` with `transition`.
      beliefs: of the time before, from `belief_propagation` or `belief_step`.
      y: as for `belief_propagation`.
      iterations: as for `belief_propagation`.
      redraws: as for `belief_propagation`.
      scheme: as for `belief_propagation`.

    Returns:
      `Beliefs`, with as many particles.

    Raises:
      TypeError, ValueError: as `belief_propagation` does, and if the field has no transition.

    >>> field = MarkovField(
    ...     nodes=1,
    ...     edges=(),
    ...     initial=lambda key, node: jax.random.normal(key),
    ...     log_unary=lambda x, node, y: -0.5 * (x - y) ** 2,
    ...     log_pairwise=lambda a, b, edge: 0.0,
    ...     transition=lambda key, x, node: x + jax.random.normal(key),
    ... )
    >>> state = belief_propagation(jax.random.key(0), field, 1.0, particles=10_000)
    >>> state = belief_step(jax.random.key(1), field, state, 1.0)
    >>> print(f"{state.mean[0]:.1f} {state.variance[0]:.1f}")
    0.8 0.6
    """
    name = "particle.belief_step"
    key = core.as_key(key, name)
    _check_field(name, field)
    if not isinstance(beliefs, Beliefs):
        raise core.bad_type(name, "beliefs", beliefs, "those of particle.belief_propagation or particle.belief_step")
    if beliefs.log_weights.shape[0] != field.nodes:
        raise core.bad_value(
            name, "beliefs", f"of {beliefs.log_weights.shape[0]} nodes", f"{field.nodes}, as the field has"
        )
    if field.transition is None:
        raise core.bad_value(name, "field.transition", None, "a function", "Without one beliefs do not move in time")
    numbers = _numbers_of(name, field, iterations, redraws)
    base = _Base(beliefs.particles, beliefs.log_weights)
    return _run(key, field, base, y, *numbers, scheme)


def belief_log_density(beliefs: Beliefs, x: Any, bandwidth: Any) -> jax.Array:
    """Log density of each belief at a state, smoothed by a Gaussian kernel: `log sum_i w_i N(x; x_i, bandwidth^2 I)`.

    Minus its mean over nodes, at states that are known, is the loss that factors are learnt by.

    Args:
      beliefs: of `belief_propagation` or `belief_step`.
      x: pytree (node, ...), a state of every node.
      bandwidth: (), positive, in the unit of the states; an array or a tracer.

    Returns:
      (node,).

    Raises:
      ValueError: if the states have other shapes, or the bandwidth is not positive.

    >>> beliefs = Beliefs(jnp.array([[0.0, 1.0]]), jnp.log(jnp.array([[0.5, 0.5]])), jnp.zeros(1), jnp.zeros(1, bool))
    >>> belief_log_density(beliefs, jnp.array([0.5]), 1.0).tolist()
    [-1.0439...]

    Source: Opipari et al. (2023), for the loss.
    """
    name = "particle.belief_log_density"
    if not isinstance(beliefs, Beliefs):
        raise core.bad_type(name, "beliefs", beliefs, "those of particle.belief_propagation or particle.belief_step")
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], *leaf.shape[2:]), leaf.dtype), beliefs[0])
    core.check_same_structure(name, "x", x, one, dtypes=False)
    width = known_number(name, "bandwidth", bandwidth, lambda h: 0 < h < math.inf, "a positive number")
    return _kernel_density(beliefs, jax.tree.map(core.as_float, x), width)


class _Base(NamedTuple):
    """What particles are drawn from before any message.

    Attributes:
      particles: pytree (node, particle, ...) that the transition moves, or None for the initial law.
      log_weights: (node, particle), theirs.
    """

    particles: Any
    log_weights: jax.Array


class _Passed(NamedTuple):
    """What messages say about particles that stay where they are.

    Attributes:
      log_weights: (node, particle), of beliefs, not normalised.
      residual: (node,).
    """

    log_weights: jax.Array
    residual: jax.Array


def _check_field(name: str, field: Any) -> None:
    if not isinstance(field, MarkovField):
        raise core.bad_type(name, "field", field, "a particle.MarkovField")


def _numbers_of(name: str, field: MarkovField, iterations: int | None, redraws: int | None) -> tuple[int, int]:
    if iterations is None:
        iterations = longest_path(field.nodes, field.edges) + 1
    core.check_whole(name, iterations=iterations)
    if redraws is None:
        redraws = 0 if field.sample_conditional is None else REDRAWS
    core.check_whole(name, 0, redraws=redraws)
    if redraws and field.sample_conditional is None:
        raise core.bad_value(name, "redraws", redraws, "0 for a field without sample_conditional")
    return iterations, redraws if field.edges else 0


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _run(
    key: core.Key, field: MarkovField, base: _Base, y: Any, iterations: int, redraws: int, scheme: smc.Scheme
) -> Beliefs:
    wiring = wiring_of(field.nodes, field.edges)
    for_base, for_redraws = core.random.split(key)
    particles = _from_base(for_base, field, base, _each_node(for_base, base.log_weights, scheme, 1))
    dtype = core.accumulator_dtype(core.result_dtype(particles))
    base = base._replace(log_weights=_normalized(base.log_weights.astype(dtype)))
    passed = _pass(field, wiring, particles, jnp.zeros_like(base.log_weights), y, iterations)

    def again(carry: tuple[Any, _Passed], index: jax.Array) -> tuple[tuple[Any, _Passed], None]:
        fresh, log_ratios = _redraw(core.fold(for_redraws, index), field, wiring, base, *carry, scheme)
        return (fresh, _pass(field, wiring, fresh, log_ratios, y, iterations)), None

    if redraws:
        (particles, passed), _ = scan.scan(again, (particles, passed), jnp.arange(redraws))
    failed = ~jnp.isfinite(core.logsumexp(passed.log_weights, axis=-1))
    return Beliefs(particles, _normalized(passed.log_weights), passed.residual, failed)


def _each_node(key: core.Key, log_weights: jax.Array, scheme: smc.Scheme, times: int) -> jax.Array:
    """Of the particles (node, times * particle) of each node, those drawn (node, particle)."""
    keys = core.chain_keys(core.fold(key, 0), jnp.arange(log_weights.shape[0]))
    number = log_weights.shape[1] // times
    return jax.vmap(lambda key, row: scheme(key, row, number))(keys, log_weights)


def _particle_keys(key: core.Key, shape: tuple[int, ...]) -> core.Key:
    nodes = core.chain_keys(key, jnp.arange(shape[0]))
    return jax.vmap(lambda key: core.chain_keys(key, jnp.arange(shape[1])))(nodes)


def _from_base(key: core.Key, field: MarkovField, base: _Base, ancestors: jax.Array) -> Any:
    """A particle for each ancestor (node, particle), of whom the initial law has no need."""
    keys, nodes = _particle_keys(core.fold(key, 1), ancestors.shape), jnp.arange(field.nodes, dtype=jnp.int32)
    if base.particles is None:
        return jax.vmap(jax.vmap(field.initial, (0, None)))(keys, nodes)
    old = jax.tree.map(lambda leaf: jax.vmap(lambda x, i: x[i])(leaf, ancestors), base.particles)
    new = jax.vmap(jax.vmap(field.transition, (0, 0, None)))(keys, old, nodes)
    core.check_same_structure("particle.belief_step", "the value of transition", new, old)
    return new


def _log_base(field: MarkovField, base: _Base, particles: Any) -> jax.Array:
    """Log density (node, particle) of the base at particles."""
    nodes = jnp.arange(field.nodes, dtype=jnp.int32)
    if base.particles is None:
        values = jax.vmap(jax.vmap(field.log_initial, (0, None)))(particles, nodes)
        return _numbers("log_initial", values, 2, base.log_weights.dtype)
    kernel = jax.vmap(jax.vmap(jax.vmap(field.log_transition, (None, 0, None)), (0, None, None)))
    values = _numbers("log_transition", kernel(base.particles, particles, nodes), 3, base.log_weights.dtype)
    return core.logsumexp(jnp.expand_dims(base.log_weights, 2) + values, axis=1)


def _pass(
    field: MarkovField, wiring: Wiring, particles: Any, log_ratios: jax.Array, y: Any, iterations: int
) -> _Passed:
    """Passes messages between particles whose weights without them, by where they are drawn from, are given."""
    dtype, number = log_ratios.dtype, len(field.edges)
    nodes = jnp.arange(field.nodes, dtype=jnp.int32)
    unary = jax.vmap(jax.vmap(field.log_unary, (0, None, None)), (0, 0, None))(particles, nodes, y)
    local = multiplied(log_ratios, _numbers("log_unary", unary, 2, dtype))
    if not number:
        return _Passed(local, jnp.zeros((field.nodes,), dtype))
    first, second = (_take(particles, wiring.sender[part]) for part in (slice(number), slice(number, None)))
    every = jax.vmap(jax.vmap(jax.vmap(field.log_pairwise, (None, 0, None)), (0, None, None)))
    pairwise = _numbers("log_pairwise", every(first, second, jnp.arange(number, dtype=jnp.int32)), 3, dtype)

    def arriving(messages: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(wiring.arrives, 2), messages[wiring.into], 0)

    def cavities(messages: jax.Array) -> jax.Array:
        # The others are summed, and not the own one subtracted from all: -inf cannot be taken back.
        others = jnp.where(jnp.expand_dims(wiring.others, 2), arriving(messages)[wiring.sender], 0)
        return _normalized(local[wiring.sender] + jnp.sum(others, axis=1))

    def update(messages: jax.Array) -> jax.Array:
        weights = cavities(messages)
        forward = core.logsumexp(jnp.expand_dims(weights[:number], 2) + pairwise, axis=1)
        backward = core.logsumexp(jnp.expand_dims(weights[number:], 1) + pairwise, axis=2)
        return jnp.concatenate([forward, backward])

    def belief(messages: jax.Array) -> jax.Array:
        return local + jnp.sum(arriving(messages), axis=1)

    nothing = jnp.zeros((2 * number, log_ratios.shape[1]), dtype)
    before, _ = scan.scan(lambda messages, _: (update(messages), None), nothing, length=iterations - 1)
    log_weights = belief(update(before))
    change = jnp.exp(_normalized(log_weights)) - jnp.exp(_normalized(belief(before)))
    return _Passed(log_weights, lax.stop_gradient(0.5 * jnp.sum(jnp.abs(change), axis=1)))


def _redraw(
    key: core.Key, field: MarkovField, wiring: Wiring, base: _Base, particles: Any, passed: _Passed, scheme: smc.Scheme
) -> tuple[Any, jax.Array]:
    """New particles from the base and the beliefs of neighbours, and their log ratios of base to that mixture."""
    dtype, number = passed.log_weights.dtype, len(field.edges)
    size, most = base.log_weights.shape[1], wiring.into.shape[1]
    edge, forward = np.arange(2 * number, dtype=np.int32) % number, np.arange(2 * number) < number
    there = np.pad(wiring.arrives, ((0, 0), (1, 0)), constant_values=True)[:, :, None]

    # One resampling for a node: of which law, and of which particle of it, each of its new particles comes. All laws
    # have one share, which scales the weights of a node and need not be known.
    senders = _normalized(passed.log_weights)[wiring.sender]
    laws = jnp.concatenate([jnp.expand_dims(base.log_weights, 1), senders[wiring.into]], axis=1)
    laws = jnp.where(there, laws, -jnp.inf)
    chosen = _each_node(key, laws.reshape(field.nodes, -1), scheme, most + 1)
    law, ancestor = chosen // size, chosen % size
    from_base = _from_base(key, field, base, ancestor)
    node = jnp.arange(field.nodes)[:, None]
    directed = jnp.asarray(wiring.into)[node, jnp.maximum(law - 1, 0)]
    given = _take(particles, (jnp.asarray(wiring.sender)[directed], ancestor))
    keys = _particle_keys(core.fold(key, 2), chosen.shape)
    draw = jax.vmap(jax.vmap(field.sample_conditional))
    moved = draw(keys, given, jnp.asarray(edge)[directed], jnp.asarray(forward)[directed])
    core.check_same_structure("particle.belief_propagation", "the value of sample_conditional", moved, from_base)
    fresh = jax.tree.map(lambda a, b: jnp.where(_like(law == 0, a), a, b), from_base, moved)
    fresh = lax.stop_gradient(fresh)

    conditional = _swapped(field.log_pairwise) if field.log_conditional is None else field.log_conditional
    every = jax.vmap(jax.vmap(jax.vmap(conditional, (None, 0, None, None)), (0, None, None, None)))
    values = every(_take(particles, wiring.sender), _take(fresh, wiring.receiver), jnp.asarray(edge), forward)
    values = _numbers("log_conditional", values, 3, dtype)
    from_neighbours = core.logsumexp(jnp.expand_dims(senders, 2) + values, axis=1)
    log_base = _log_base(field, base, fresh)
    densities = jnp.concatenate([jnp.expand_dims(log_base, 1), from_neighbours[wiring.into]], axis=1)
    mixture = core.logsumexp(jnp.where(there, densities, -jnp.inf), axis=1)
    return fresh, log_base - lax.stop_gradient(mixture)


def _swapped(log_pairwise: Callable[..., Any]) -> Callable[..., Any]:
    """The potential as a function of a given end and a drawn one."""

    def conditional(given: Any, drawn: Any, edge: jax.Array, forward: jax.Array) -> Any:
        first = jax.tree.map(lambda a, b: jnp.where(forward, a, b), given, drawn)
        second = jax.tree.map(lambda a, b: jnp.where(forward, b, a), given, drawn)
        return log_pairwise(first, second, edge)

    return conditional


def _take(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _like(flags: jax.Array, leaf: jax.Array) -> jax.Array:
    """Flags (node, particle) with the axes of a leaf (node, particle, ...)."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - 2))


def _numbers(argument: str, values: Any, axes: int, dtype: Any) -> jax.Array:
    values = core.as_float(values)
    if values.ndim != axes:
        todo = "Sum over everything that it is a product of"
        got = f"of shape {values.shape[axes:]}"
        raise core.bad_value("particle.belief_propagation", f"the value of {argument}", got, "one number", todo)
    return values.astype(dtype)


def _normalized(log_weights: jax.Array) -> jax.Array:
    """Log weights that sum to one along the last axis; equal ones where there is no mass, or no telling."""
    total = core.logsumexp(log_weights, axis=-1, keepdims=True)
    known = jnp.isfinite(total)
    return jnp.where(known, log_weights - jnp.where(known, total, 0), -math.log(log_weights.shape[-1]))


@jax.jit
def _kernel_density(beliefs: Beliefs, x: Any, bandwidth: jax.Array) -> jax.Array:
    log_weights = beliefs.log_weights
    dtype, alive = log_weights.dtype, log_weights > -jnp.inf
    width = bandwidth.astype(dtype)

    def exponent(leaf: jax.Array, at: jax.Array) -> jax.Array:
        gaps = jnp.where(_like(alive, leaf), jnp.expand_dims(at.astype(dtype), 1) - leaf.astype(dtype), 0) / width
        return jnp.sum((0.5 * gaps**2).reshape(*log_weights.shape, -1), axis=-1)

    exponents = sum(jax.tree.leaves(jax.tree.map(exponent, beliefs.particles, x)), start=jnp.zeros((), dtype))
    size = core.size(x) // log_weights.shape[0]
    return core.logsumexp(log_weights - exponents, axis=1) - size * (jnp.log(width) + 0.5 * math.log(2 * math.pi))
