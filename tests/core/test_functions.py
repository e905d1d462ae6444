"""Functions as pytrees: what they hold is traced or fixed, and equal ones share their programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


def scaled(weights, factor, x, *, negated=False, name="x"):
    assert name == "y"
    return weights["w"] * factor * x * (-1 if negated else 1)


def held(weights, factor, negated=False):
    inner = functools.partial(scaled, {"w": weights}, negated=negated)
    return core.as_partial(functools.partial(inner, factor, name="y"))


def test_arrays_and_floats_are_leaves_and_the_rest_is_structure():
    leaves, structure = jax.tree.flatten(held(jnp.ones(2), 2.0))
    assert len(leaves) == 2
    assert structure == jax.tree.structure(held(np.zeros(3), 1.0))
    assert structure != jax.tree.structure(held(jnp.ones(2), 2.0, negated=True))


def test_equal_functions_share_a_program():
    traces = []

    @jax.jit
    def call(function, x):
        traces.append(1)
        return function(x)

    assert np.array_equal(call(held(jnp.ones(2), 2.0), 3.0), [6, 6])
    assert np.array_equal(call(held(2 * jnp.ones(2), 3.0), 3.0), [18, 18])
    assert len(traces) == 1
    assert np.array_equal(call(held(jnp.ones(2), 2.0, negated=True), 3.0), [-6, -6])
    assert len(traces) == 2


def test_derivatives_go_through_what_it_holds():
    gradient = jax.grad(lambda function: jnp.sum(function(3.0)))(held(jnp.ones(2), 2.0))
    assert [np.sum(leaf).item() for leaf in jax.tree.leaves(gradient)] == [12.0, 6.0]


def test_plain_functions_and_pytrees_stay_what_they_are():
    assert jax.tree.leaves(core.as_partial(jnp.sin)) == []
    assert core.as_partial(None) is None
    pytree = jax.tree_util.Partial(jnp.add, 1.0)
    assert core.as_partial(pytree) is pytree
