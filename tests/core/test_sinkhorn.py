"""Sinkhorn's half steps on logarithms against its kernel in double precision."""

import jax.numpy as jnp
import numpy as np

from jaxprob import core


def test_half_steps_give_their_margins_and_the_plan_is_the_scaled_kernel(rng, x64):
    cost = rng.uniform(0, 4, size=(5, 3))
    rows, columns = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(3))
    kernel, right, column = np.exp(-cost), np.ones(3), jnp.zeros(3)
    for _ in range(4):
        # The reference measure of potentials has the margins themselves, that of scalings is one.
        left = rows / (kernel @ (columns * right)) / rows
        right = columns / (kernel.T @ (rows * left)) / columns
        row = core.sinkhorn_rows(jnp.asarray(cost), jnp.log(columns), column)
        column = core.sinkhorn_columns(jnp.asarray(cost), jnp.log(rows), row)
        np.testing.assert_allclose(jnp.exp(row), left, rtol=1e-12)
        np.testing.assert_allclose(jnp.exp(column), right, rtol=1e-12)
    plan = np.exp(core.sinkhorn_log_plan(jnp.asarray(cost), jnp.log(rows), jnp.log(columns), row, column))
    np.testing.assert_allclose(plan, (rows * left)[:, None] * kernel * (columns * right), rtol=1e-12)
    np.testing.assert_allclose(plan.sum(0), columns, rtol=1e-12)


def test_a_row_without_weight_and_a_constant_weight(x64):
    cost = jnp.asarray([[0.0, 1.0], [2.0, 0.5]])
    row = core.sinkhorn_rows(cost, -np.log(2), jnp.zeros(2))
    column = core.sinkhorn_columns(cost, jnp.array([0.0, -jnp.inf]), row)
    plan = np.exp(core.sinkhorn_log_plan(cost, jnp.array([0.0, -jnp.inf]), -np.log(2), row, column))
    np.testing.assert_allclose(plan, [[0.5, 0.5], [0.0, 0.0]], rtol=1e-12)
