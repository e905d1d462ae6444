"""Loops and branches are those of JAX, and take what is typed in any way inside `shard_map`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxprob import core, scan


def halved(x):
    """Begins with zeros, which vary over no device."""
    return core.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + x), (0, jnp.zeros(())))[1]


def summed(x):
    return core.fori_loop(0, 3, lambda i, c: (c[1], c[0] + x), (jnp.zeros(()), jnp.ones(())))[0]


def branched(x):
    return core.cond(x > 1, lambda y: (y, jnp.zeros(())), lambda y: (jnp.ones(()), y), x)


def switched(x):
    return core.switch(x.astype(int), [lambda: jnp.zeros(()), lambda: x, lambda: 2 * x])


def scanned(x):
    """What varies comes from outside and takes two steps to reach the first number."""
    return scan.scan(lambda c, y: ((c[1], c[0] + x), c[1]), (jnp.zeros(()), jnp.ones(())), jnp.arange(4.0))


def bounded(x):
    return scan.bounded(lambda c, i: (c + x, c), jnp.zeros(()), 3, 5, until=lambda c: c > 4)


def repeated(x):
    return scan.repeat(lambda c, i: c + x, jnp.zeros(()), 3)


def batch_of_branches(x):
    """Of which each takes another one."""
    return jax.vmap(lambda y: core.cond(y > 1, lambda: y, lambda: jnp.zeros(())))(x + jnp.arange(3.0))


FUNCTIONS = [halved, summed, branched, switched, scanned, bounded, repeated, batch_of_branches]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("check", [True, False])
def test_inside_shard_map(function, check):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    spec, mapped = PartitionSpec("data"), jax.vmap(function)
    xs = jnp.arange(4.0)
    found = jax.jit(jax.shard_map(mapped, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check))(xs)
    jax.tree.map(np.testing.assert_array_equal, found, mapped(xs))
    # One number a device, so that conditions are not mapped.
    alone = jax.shard_map(
        lambda x: jax.tree.map(lambda y: y[None], function(x[0])), mesh=mesh, in_specs=spec, out_specs=spec,
        check_vma=check,
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, jax.jit(alone)(xs[:2]), mapped(xs[:2]))


def test_outside_they_are_those_of_jax():
    two = jnp.float32(2)
    assert halved(two) == 6
    assert summed(two) == 3
    assert [x.tolist() for x in branched(two)] == [2, 0]
    assert switched(two) == 4
    assert jax.grad(lambda x: summed(x))(two) == 1
    assert "cond" in str(jax.make_jaxpr(branched)(two))
    assert str(jax.make_jaxpr(halved)(two)) == str(
        jax.make_jaxpr(lambda x: jax.lax.while_loop(
            lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + x), (0, jnp.zeros(())))[1])(two)
    )  # fmt: skip


def test_a_carry_of_another_structure_is_told_by_jax():
    with pytest.raises(TypeError, match="carry"):
        core.while_loop(lambda c: c[0] < 3, lambda c: c[:1], (0, 1))
