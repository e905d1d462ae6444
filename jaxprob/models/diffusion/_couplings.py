"""Couplings of a batch of data with a batch of noise: which noise each example is joined to by a straight line.

Independent pairs make lines that cross; pairs that are close make nearly straight flows that few steps follow. What
each example gets is drawn from a plan of optimal transport between the two batches, so that noise of no example is
preferred, but on average over batches.

Sources: Tong et al. (2024), "Improving and generalizing flow-based generative models with minibatch optimal transport";
Pooladian et al. (2023), "Multisample flow matching"; Cuturi (2013), "Sinkhorn distances".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan

# By what the weight of the entropy is multiplied from one iteration to the next, until it is the one asked for.
_ANNEALING = 0.8
# Of a batch's margins: below what a draw of pairs has.
_TOLERANCE = 1e-3


class Plan(NamedTuple):
    """A plan that carries equal weights to equal weights.

    Attributes:
      log_plan: (row, column), logarithms of numbers whose sum is one.
      error: (), sum of absolute errors of its margins. Not small means too few iterations, and a plan that is not the
        cheapest.
      iterations: (), int32, how many it took.
    """

    log_plan: jax.Array
    error: jax.Array
    iterations: jax.Array


def transport_plan(cost: Any, epsilon: float = 0.05, iterations: int = 500, tolerance: float = 1e-3) -> Plan:
    """The plan P with equal margins that makes `sum_ij P_ij cost_ij - epsilon sd(cost) H(P)` least.

    By Sinkhorn's iteration on logarithms, with an `epsilon` that falls to the one asked for, which takes far fewer
    iterations where that is small.

    Args:
      cost: (row, column), floating.
      epsilon: above 0, weight of the entropy, as a share of the standard deviation of the costs: a constant that is
        added to all of them changes nothing.
      iterations: the most.
      tolerance: of the error of the margins; iterations end there.

    Raises:
      ValueError: if the cost is no matrix, or a number is not positive.

    >>> plan = transport_plan(jnp.array([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1)
    >>> print(jnp.exp(plan.log_plan).round(2).tolist(), bool(plan.error < 1e-3))
    [[0.5, 0.0], [0.0, 0.5]] True

    Source: Cuturi (2013), algorithm 1; Schmitzer (2019), "Stabilized sparse scaling algorithms for entropy regularized
    transport problems", section 3, for logarithms and the falling weight.
    """
    name = "diffusion.transport_plan"
    cost = core.as_float(cost)
    if cost.ndim != 2 or 0 in cost.shape:
        raise core.bad_value(name, "cost", f"of shape {cost.shape}", "a matrix (row, column)")
    core.check_positive(name, epsilon=epsilon, tolerance=tolerance)
    core.check_whole(name, iterations=iterations)
    cost = cost.astype(core.accumulator_dtype(cost.dtype))
    return _plan(cost / _unit(cost), float(epsilon), int(iterations), float(tolerance))


@functools.partial(jax.jit, static_argnames=("epsilon", "iterations", "tolerance"))
def _plan(cost: jax.Array, epsilon: float, iterations: int, tolerance: float) -> Plan:
    """`transport_plan` of a cost in a unit of its own size."""
    log_rows, log_columns = (-math.log(number) for number in cost.shape)

    # How many iterations have another weight than the last.
    falls = max(0, math.ceil(math.log(epsilon) / math.log(_ANNEALING)))

    def iterate(state: Any, index: jax.Array) -> tuple[Any, None]:
        row, column, _, _ = state
        weight = jnp.maximum(epsilon, _ANNEALING ** index.astype(cost.dtype)).astype(cost.dtype)
        # Potentials in units of the cost, since the weight changes.
        scaled = cost / weight
        column = weight * core.sinkhorn_columns(scaled, log_rows, row / weight)
        new = weight * core.sinkhorn_rows(scaled, log_columns, column / weight)
        # Columns are right after the first; rows were off by this factor before the second.
        error = jnp.mean(jnp.abs(jnp.expm1((row - new) / weight)))
        return (new, column, jnp.where(index < falls, jnp.inf, error), index + 1), None

    start = jnp.zeros_like(cost[:, 0]), jnp.zeros_like(cost[0]), jnp.asarray(jnp.inf, cost.dtype), jnp.int32(0)
    (row, column, _, taken), _ = scan.bounded(
        iterate, start, iterations, iterations, until=lambda state: state[2] <= tolerance
    )
    log_plan = core.sinkhorn_log_plan(cost / epsilon, log_rows, log_columns, row / epsilon, column / epsilon)
    off = [jnp.sum(jnp.abs(jnp.exp(core.logsumexp(log_plan, axis=axis)) - 1 / cost.shape[1 - axis])) for axis in (0, 1)]
    return Plan(log_plan, off[0] + off[1], taken)


def assignment(cost: Any) -> jax.Array:
    """The column of each row, all of them different, that makes the sum of their costs least.

    The Hungarian algorithm, exact, in time of the number of rows cubed at worst, one path after the other: for a few
    hundred rows. Costs that are not finite are taken for very large ones.

    Args:
      cost: (row, column), as many columns as rows at least.

    Returns:
      int32 (row,).

    Raises:
      ValueError: if the cost is no such matrix.

    >>> assignment(jnp.array([[1.0, 2.0], [1.0, 3.0]])).tolist()
    [1, 0]

    Source: Kuhn (1955), "The Hungarian method for the assignment problem"; Jonker & Volgenant (1987), "A shortest
    augmenting path algorithm for dense and sparse linear assignment problems".
    """
    cost = core.as_float(cost)
    if cost.ndim != 2 or not 0 < cost.shape[0] <= cost.shape[1]:
        expected = "a matrix (row, column) with as many columns as rows at least"
        raise core.bad_value("diffusion.assignment", "cost", f"of shape {cost.shape}", expected)
    return _assigned(cost)


@jax.jit
def _assigned(cost: jax.Array) -> jax.Array:
    cost = cost.astype(core.accumulator_dtype(cost.dtype))
    rows, columns = cost.shape
    known = jnp.isfinite(cost)
    largest = jnp.max(jnp.where(known, jnp.abs(cost), 0))
    cost = jnp.where(known, cost / _or_one(largest), 2.0 * rows)
    # A further column, the last, is where each path starts, with the row that is to be placed.
    cost = jnp.concatenate([cost, jnp.zeros_like(cost[:, :1])], 1)
    free = rows

    def place(state: Any, new: jax.Array) -> tuple[Any, None]:
        """The shortest path from a new row to a free column; along it each row moves on by one."""
        row_price, column_price, owner = state
        owner = owner.at[columns].set(new)

        def going(path: Any) -> jax.Array:
            return owner[path[0]] != free

        def grow(path: Any) -> Any:
            here, distance, before, seen, row_price, column_price = path
            seen = seen.at[here].set(True)
            row = owner[here]
            reduced = cost[row] - row_price[row] - column_price
            shorter = ~seen & (reduced < distance)
            distance, before = jnp.where(shorter, reduced, distance), jnp.where(shorter, here, before)
            after = jnp.argmin(jnp.where(seen, jnp.inf, distance)).astype(jnp.int32)
            step = distance[after]
            moved = jnp.where(seen, step, 0)
            row_price = row_price.at[owner].add(moved, mode="drop")
            distance = jnp.where(seen, distance, distance - step)
            return after, distance, before, seen, row_price, column_price - moved

        nowhere = jnp.full((columns + 1,), jnp.inf, cost.dtype), jnp.full((columns + 1,), columns, jnp.int32)
        path = (jnp.int32(columns), *nowhere, jnp.zeros(columns + 1, bool), row_price, column_price)
        end, _, before, _, row_price, column_price = core.while_loop(going, grow, path)

        def move(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            here, owner = state
            return before[here], owner.at[here].set(owner[before[here]])

        _, owner = core.while_loop(lambda state: state[0] != columns, move, (end, owner))
        return (row_price, column_price, owner), None

    start = jnp.zeros_like(cost[:, 0]), jnp.zeros_like(cost[0]), jnp.full((columns + 1,), free, jnp.int32)
    (_, _, owner), _ = scan.scan(place, start, jnp.arange(rows, dtype=jnp.int32))
    return jnp.zeros(rows, jnp.int32).at[owner[:columns]].set(jnp.arange(columns, dtype=jnp.int32), mode="drop")


def optimal_transport(
    epsilon: float = 0.05, *, condition_weight: float = 10.0, iterations: int = 500
) -> Callable[..., jax.Array]:
    """Noise for each example by optimal transport within a batch, for `diffusion.loss(coupling=)`.

    The cost is the squared distance. With `epsilon` above 0 each example draws its noise from its row of the plan; with
    0 each noise goes to one example, by the cheapest assignment.

    With conditions, noise j comes with condition j, and a pair costs more the less its conditions agree: otherwise the
    noise of a condition would have another law than that from which samples start.

    Args:
      epsilon: 0 or more, weight of the entropy, as for `transport_plan`, of squared distances of noise and examples.
        Large ones give independent pairs.
      condition_weight: what a pair of labels that differ, or of vectors as far from each other as any two on average,
        costs, in units of the standard deviation of these distances; 0 ignores conditions.
      iterations: the most of Sinkhorn's algorithm; `transport_plan` says how many a cost takes.

    Returns:
      `(key, examples, noise, conditions) -> noise`, of batches (example, ...); equal arguments make equal functions.

    Raises:
      ValueError: for a number that is negative or no number.

    >>> coupling = optimal_transport(epsilon=0.0)
    >>> examples, noise = jnp.array([[0.0], [5.0]]), jnp.array([[4.0], [1.0]])
    >>> coupling(jax.random.key(0), examples, noise).tolist()
    [[1.0], [4.0]]

    Source: Tong et al. (2024), section 3.3; Chemseddine, Hagemann, Steidl & Wald (2024), "Conditional Wasserstein
    distances with applications in Bayesian OT flow matching", section 4, and Kerrigan, Migliorini & Smyth (2024),
    "Dynamic conditional optimal transport through simulation-free flows", section 4, for the cost of conditions.
    """
    name = "diffusion.optimal_transport"
    for argument, value in (("epsilon", epsilon), ("condition_weight", condition_weight)):
        if not core.is_number(value) or not 0 <= value < math.inf:
            raise core.bad_value(name, argument, value, "a number, 0 or more")
    core.check_whole(name, iterations=iterations)
    return core.Bound(_couple, float(epsilon), float(condition_weight), int(iterations))


def _couple(
    epsilon: float,
    condition_weight: float,
    iterations: int,
    key: core.Key,
    examples: Any,
    noise: Any,
    conditions: Any = None,
) -> jax.Array:
    name = "diffusion.optimal_transport"
    examples, noise = core.as_float(examples), core.as_float(noise)
    if noise.shape != examples.shape or not examples.ndim or not len(examples):
        raise core.bad_value(
            name, "noise", f"of shape {noise.shape}", f"{examples.shape}, as the examples, one or more"
        )
    for leaf in jax.tree.leaves(conditions):
        if jnp.shape(leaf)[:1] != (len(examples),):
            got, expected = f"of shape {jnp.shape(leaf)}", f"one for each of {len(examples)} examples"
            raise core.bad_value(name, "conditions", got, expected)
    order = _order(core.as_key(key, name), examples, noise, conditions, epsilon, condition_weight, iterations)
    return noise[order]


@functools.partial(jax.jit, static_argnames=("epsilon", "condition_weight", "iterations"))
def _order(
    key: core.Key,
    examples: jax.Array,
    noise: jax.Array,
    conditions: Any,
    epsilon: float,
    condition_weight: float,
    iterations: int,
) -> jax.Array:
    """Which noise each example gets, int32 (example,)."""
    cost = _squared_distances(examples, noise)
    cost = cost / _unit(cost)
    if condition_weight:
        for leaf in jax.tree.leaves(conditions):
            cost = cost + condition_weight * _disagreement(jnp.asarray(leaf)).astype(cost.dtype)
    if not epsilon:
        return _assigned(cost)
    return core.random.categorical(key, _plan(cost, epsilon, iterations, _TOLERANCE).log_plan).astype(jnp.int32)


def _squared_distances(xs: jax.Array, ys: jax.Array) -> jax.Array:
    """Of all pairs: (x, y), for batches of any shape."""
    dtype = core.accumulator_dtype(xs.dtype)
    xs, ys = (batch.reshape(batch.shape[0], -1).astype(dtype) for batch in (xs, ys))
    # Squares of large numbers would take the digits of their differences.
    centre = jnp.mean(xs, 0, keepdims=True)
    xs, ys = xs - centre, ys - centre
    squares = jnp.expand_dims(jnp.sum(xs**2, 1), 1) + jnp.expand_dims(jnp.sum(ys**2, 1), 0)
    return jnp.maximum(squares - 2 * core.matmul(xs, ys.T), 0)


def _disagreement(conditions: jax.Array) -> jax.Array:
    """Of all pairs of conditions: whether labels differ; squared distances of vectors, one on average."""
    flat = conditions.reshape(len(conditions), -1)
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        return jnp.any(jnp.expand_dims(flat, 1) != jnp.expand_dims(flat, 0), -1).astype(jnp.float32)
    # NaN stands for no condition, and agrees with NaN alone.
    missing = jnp.any(jnp.isnan(flat), -1)
    distances = _squared_distances(*[jnp.where(jnp.isnan(flat), 0, flat)] * 2)
    apart = jnp.expand_dims(missing, 1) != jnp.expand_dims(missing, 0)
    return distances / _or_one(jnp.mean(distances)) + apart.astype(distances.dtype)


def _unit(cost: jax.Array) -> jax.Array:
    """The standard deviation of costs, ()."""
    return _or_one(jnp.std(cost))


def _or_one(unit: jax.Array) -> jax.Array:
    """What to divide by: costs that are all the same stay as they are."""
    return jnp.where(unit > 0, unit, 1)
