"""`@core.pytree` classes and `core.Shared` through every transformation, and through a checkpoint."""

import copy
import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core


@core.pytree
class Affine:
    slope: Any
    offset: Any
    name: str = core.static(default="affine")
    calls: int = core.static(default=0)

    def __post_init__(self):
        if jnp.shape(self.slope) != jnp.shape(self.offset):
            raise ValueError("shapes differ")
        object.__setattr__(self, "slope", core.as_float(self.slope))
        object.__setattr__(self, "offset", core.as_float(self.offset))

    def __call__(self, x):
        return self.slope * x + self.offset


@core.pytree
class Chain(Affine):
    inner: Any = None


def make(n=3):
    return Affine(jnp.arange(1.0, n + 1), jnp.ones(n), name="mine")


def same(a, b):
    assert type(a) is type(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_returned_from_jit():
    got = jax.jit(lambda x: Affine(x, 2 * x, name="made"))(jnp.ones(2))
    same(got, Affine(jnp.ones(2), 2 * jnp.ones(2), name="made"))


def test_passed_to_jit_without_tracing_again():
    traces = []

    @jax.jit
    def call(node, x):
        traces.append(1)
        return node(x)

    call(make(), 1.0)
    call(Affine(jnp.zeros(3), jnp.zeros(3), name="mine"), 2.0)
    assert len(traces) == 1
    call(Affine(jnp.zeros(3), jnp.zeros(3), name="other"), 2.0)
    assert len(traces) == 2


def test_built_and_used_under_vmap():
    nodes = jax.vmap(lambda x: Affine(x, 2 * x))(jnp.arange(4.0))
    assert nodes.slope.shape == (4,)
    got = jax.vmap(lambda node, x: node(x))(nodes, jnp.full(4, 3.0))
    np.testing.assert_array_equal(got, [0, 5, 10, 15])
    # A specification of axes is a node too, built without the checks of a constructor.
    axes = jax.tree.unflatten(jax.tree.structure(make()), [0, None])
    got = jax.vmap(lambda node: node(2.0), in_axes=(axes,))(make())
    np.testing.assert_array_equal(got, [[3.0] * 3, [5.0] * 3, [7.0] * 3])


def test_carried_through_scan():
    final, slopes = jax.lax.scan(
        lambda node, x: (dataclasses.replace(node, slope=node.slope + x), node.slope), make(), jnp.arange(4.0)
    )
    np.testing.assert_array_equal(final.slope, [7, 8, 9])
    assert slopes.shape == (4, 3)
    assert final.name == "mine"


def test_differentiated():
    gradient = jax.grad(lambda node: jnp.sum(node(jnp.full(3, 5.0))))(make())
    same(gradient, Affine(jnp.full(3, 5.0), jnp.ones(3), name="mine"))
    value, tangent = jax.jvp(lambda node: node(2.0), (make(),), (make(),))
    np.testing.assert_array_equal(value, tangent)


def test_mapped_and_named():
    same(jax.tree.map(lambda x: 2 * x, make()), Affine(2 * make().slope, 2 * make().offset, name="mine"))
    assert [name for name, _ in core.named_leaves({"f": make()})] == ["f.slope", "f.offset"]
    vector, unravel = core.ravel(make())
    same(unravel(vector), make())


def test_rebuilding_skips_the_checks():
    """Placeholders that no constructor would take go through."""
    structure = jax.tree.structure(make())
    node = jax.tree.unflatten(structure, [object(), None])
    assert node.offset is None
    jax.tree.map(lambda x: x.shape, jax.eval_shape(make))
    with pytest.raises(ValueError, match="shapes differ"):
        Affine(jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="shapes differ"):
        dataclasses.replace(make(), slope=jnp.ones(5))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().slope = 3.0
    assert hash(make()) is not None
    assert make() != make()  # identity


def test_sub_classes_keep_their_own_fields():
    node = Chain(1.0, 2.0, inner=make())
    assert len(jax.tree.leaves(node)) == 4
    assert "inner=Affine(" in repr(node)
    assert repr(node).startswith("Chain(slope=")
    same(jax.jit(lambda x: x)(node), node)


def test_own_repr_is_kept():
    @core.pytree
    class Short:
        x: Any

        def __repr__(self):
            return "short"

    @core.pytree
    class Shorter(Short):
        pass

    assert repr(Short(1)) == repr(Shorter(1)) == "short"


def test_copied_and_pickled():
    for clone in (copy.copy(make()), copy.deepcopy(make()), pickle.loads(pickle.dumps(make()))):
        same(clone, make())


def test_sharded():
    mesh = jax.make_mesh((8,), ("chain",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("chain")
    sharding = jax.sharding.NamedSharding(mesh, spec)
    node = jax.device_put(make(8), sharding)
    assert node.slope.sharding == sharding
    doubled = jax.jit(
        jax.shard_map(lambda n: jax.tree.map(lambda x: 2 * x, n), mesh=mesh, in_specs=spec, out_specs=spec)
    )(node)
    same(doubled, jax.tree.map(lambda x: 2 * x, make(8)))


def test_checkpointed(tmp_path):
    from orbax.checkpoint import v1 as ocp

    state = core.Shared(chain=make(), shared={"step": jnp.int32(4), "key": jax.random.key(7)})
    ocp.save(tmp_path / "state", state)
    back = ocp.load(tmp_path / "state", jax.eval_shape(lambda: state))
    assert isinstance(back, core.Shared)
    same(back.chain, state.chain)
    np.testing.assert_array_equal(jax.random.key_data(back.shared["key"]), jax.random.key_data(jax.random.key(7)))
