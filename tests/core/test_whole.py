"""Functions that are not taken apart: values and derivatives of all orders are theirs, in every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxprob import core, scan


def total(tree):
    """A loop, to have something to take apart; its second derivative is not zero."""

    def step(carry, x):
        return jnp.sin(carry * tree["scale"]) + x, carry**3

    last, cubes = scan.scan(step, tree["start"], tree["xs"])
    return last**2 + jnp.sum(cubes)


@jax.custom_jvp
def fast(tree):
    return total(tree)


@fast.defjvp
def _(primals, tangents):
    value, slopes = core.whole(jax.value_and_grad(total))(*primals)
    return value, sum(jnp.sum(s * t) for s, t in zip(*map(jax.tree.leaves, (slopes, tangents[0])), strict=True))


@pytest.fixture
def tree(x64):
    return {"scale": jnp.array(0.7), "start": jnp.array(0.3), "xs": jnp.linspace(-1.0, 1.0, 5)}


def close(got, expected):
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14), got, expected)


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function])
def test_derivatives_of_a_rule_that_has_its_gradient_made_whole(jit, tree):
    close(jit(fast)(tree), total(tree))
    close(jit(jax.grad(fast))(tree), jax.grad(total)(tree))
    close(jit(jax.jacfwd(fast))(tree), jax.grad(total)(tree))
    close(jit(jax.hessian(fast))(tree), jax.hessian(total)(tree))
    close(jit(jax.jacrev(jax.jacrev(fast)))(tree), jax.hessian(total)(tree))
    close(jit(jax.jacfwd(jax.hessian(fast)))(tree), jax.jacfwd(jax.hessian(total))(tree))


def test_batches_of_some_arguments(tree):
    batch = tree | {"xs": jnp.stack([tree["xs"], 2 * tree["xs"], -tree["xs"]], 1)}
    axes = ({"scale": None, "start": None, "xs": 1},)
    for transformed in (lambda f: f, jax.grad, jax.hessian):
        close(jax.vmap(transformed(fast), axes)(batch), jax.vmap(transformed(total), axes)(batch))
    close(*(jax.grad(lambda t, f=f: jnp.sum(jax.vmap(f, axes)(t) ** 2))(batch) for f in (fast, total)))


def test_what_it_closes_over_moves_too(tree):
    def closing(x, inner):
        return inner(lambda start: total(tree | {"start": start, "scale": x}))(0.5 * x)

    one, two = jnp.array(0.4), jnp.array([0.2, 0.4])
    for transformed, x in ((jax.jit, one), (jax.grad, one), (jax.hessian, one), (jax.vmap, two)):
        close(transformed(lambda x: closing(x, core.whole))(x), transformed(lambda x: closing(x, lambda f: f))(x))


def test_a_rule_for_batches(tree):
    """It is told which arguments are batched, along the first axis, and may leave the batch to `vmap`."""
    seen = []

    def batch(function, batched, x, y):
        seen.append((batched, x.shape))
        if not batched[1]:
            return None
        return jax.vmap(function, [0 if b else None for b in batched])(x, y) + 1

    def product(x, y):
        return core.whole(jnp.multiply, batch)(x, y)

    x, y = jnp.arange(3.0), 2 * jnp.arange(3.0)
    close(product(x[1], y[1]), 2.0)
    close(jax.vmap(product)(x, y), x * y + 1)
    close(jax.vmap(lambda x: product(x, y[1]))(x), 2 * x)
    close(jax.vmap(product, (1, 0))(jnp.stack([x, y], 0), y), jnp.stack([x, y], 1) * y[:, None] + 1)
    close(jax.grad(lambda x: jnp.sum(jax.vmap(product)(x, y)))(x), y)
    assert [batched for batched, _ in seen] == [(True, True), (True, False), (True, True), (True, True)]
    assert seen[2][1] == (3, 2)


def test_nothing_is_left_of_the_loop_but_its_gradient(tree):
    """Two loops, forward and back, as in the gradient alone; and what is traced has them inside one equation."""
    primitives = [equation.primitive.name for equation in jax.make_jaxpr(jax.grad(fast))(tree).eqns]
    assert primitives.count("whole") == 1
    assert "scan" not in primitives
    compiled = jax.jit(jax.grad(fast)).lower(tree).as_text()
    assert compiled.count("stablehlo.while") == 2


def test_in_a_part_of_a_mesh(tree):
    mesh = Mesh(np.array(jax.devices()[:2]), "i")

    def per_device(starts, tree):
        value, slopes = core.whole(jax.vmap(jax.value_and_grad(lambda s: total(tree | {"start": s}))))(starts)
        return value, slopes

    starts = jnp.array([0.1, 0.2, 0.3, 0.4])
    got = jax.jit(jax.shard_map(per_device, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i")))(starts, tree)
    close(got, per_device(starts, tree))
