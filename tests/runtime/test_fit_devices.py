"""Training on meshes: one, two and eight devices, parameters whole and cut, agree; what does not fit is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxprob
from jaxprob import learning, runtime
from jaxprob.runtime import _fit_program, _sharding
from tests.runtime import _tasks


def fit(devices, sharding=None):
    return jaxprob.fit(
        _tasks.network(),
        _tasks.arrays(),
        steps=30,
        devices=devices,
        sharding=sharding,
        validation=_tasks.validation(),
        evaluate_every=10,
        log_every=1,
        progress=None,
    )


@pytest.fixture(scope="module")
def alone():
    return fit(1)


def wide(size=8):
    """A leaf above the bound from which "fsdp" cuts."""

    def init(key):
        return {"in": {"kernel": jax.random.normal(key, (size, 1024)), "bias": jnp.zeros(1024)}}

    return learning.Task(
        init, lambda p, batch, key: jnp.mean((batch @ p["in"]["kernel"]) ** 2), optax.adam(1e-2), ema=0.9
    )


@pytest.mark.parametrize(
    ("devices", "sharding"),
    [
        (2, None),
        (8, None),
        ((4, 2), {"hidden.kernel": (None, "model"), "*kernel": ("model",), "*.bias": ("model",)}),
    ],
    ids=["two", "eight", "four by two"],
)
def test_one_two_and_eight_devices_agree(alone, devices, sharding):
    devices = runtime.mesh(data=devices[0], model=devices[1]) if isinstance(devices, tuple) else devices
    result = fit(devices, sharding)
    for name, values in alone.history.items():
        np.testing.assert_allclose(result.history[name], values, rtol=2e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), result.params, alone.params)
    if sharding:
        for tree in (result.params, result.average, result.state.optimizer_state[0].mu, result.best):
            assert tree["hidden"]["kernel"].sharding.spec == P(None, "model")
            assert tree["output"]["kernel"].sharding.spec in (P("model"), P("model", None))
            assert tree["hidden"]["kernel"].addressable_shards[0].data.shape == (8, 32)


def test_fsdp_cuts_what_is_big_and_gives_the_same():
    data = learning.data.arrays(_tasks.examples()["x"], 16)
    options = {"steps": 20, "log_every": 1, "progress": None}
    cut, whole = (jaxprob.fit(wide(), data, devices=8, sharding=s, **options) for s in ("fsdp", None))
    np.testing.assert_allclose(cut.history["loss"], whole.history["loss"], rtol=1e-4)
    for tree in (cut.params, cut.average, cut.state.optimizer_state[0].nu):
        assert tree["in"]["kernel"].addressable_shards[0].data.shape == (8, 128)
        assert tree["in"]["bias"].sharding.is_fully_replicated


def specs(task, sharding, mesh):
    return _sharding.state_specs(_fit_program.state_shape(task, jax.random.key(0)), sharding, mesh)


def test_the_optimiser_follows_its_parameters_also_inside_others():
    sgd = learning.by_path({"output.*": optax.sgd(0.1, momentum=0.9)}, default=optax.adamw(1e-3))
    task = learning.Task(_tasks.init, _tasks.loss, optax.chain(optax.clip_by_global_norm(1.0), sgd))
    found = specs(
        task, {"hidden.kernel": (None, "model"), "output.kernel": ("model", None)}, runtime.mesh(data=4, model=2)
    )
    state = _fit_program.state_shape(task, jax.random.key(0))
    leaves = jax.tree.leaves(found.optimizer_state, is_leaf=lambda x: isinstance(x, P))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.optimizer_state)]
    wanted = {(8, 64): P(None, "model"), (64, 1): P("model", None)}
    assert [wanted.get(shape, P()) for shape in shapes] == leaves
    assert shapes.count((8, 64)) == 2  # two moments of adamw
    assert shapes.count((64, 1)) == 1  # one of momentum


def test_leaves_of_one_shape_are_told_apart_by_their_paths():
    task = learning.Task(
        lambda key: {"a": {"w": jnp.zeros((4, 4))}, "w": jnp.zeros((4, 4))}, lambda p, b, k: 0.0, optax.adam(1.0)
    )
    found = specs(task, {"a.w": ("model",), "w": (None, "model")}, runtime.mesh(data=4, model=2))
    assert found.optimizer_state[0].mu == {"a": {"w": P("model")}, "w": P(None, "model")}


@pytest.mark.parametrize(
    ("sharding", "said"),
    [
        (
            {"*.weights": ("model",)},
            r"sharding\['\*.weights'\] is without a leaf; expected one that meets a leaf, such as 'hid",
        ),
        (
            {"hidden.bias": (None, "model")},
            r"sharding\['hidden.bias'\] is \(None, 'model'\) for 'hidden.bias' of shape",
        ),
        ({"hidden.kernel": ("tensor",)}, r"sharding\['hidden.kernel'\] is over 'tensor'; expected axes of the mesh"),
        (
            {"output.kernel": (None, "model")},
            r"sharding\['output.kernel'\] is .* expected axes that the mesh's 2 devices",
        ),
        ({"hidden.kernel": "model"}, r"sharding\['hidden.kernel'\] is 'model'; expected a tuple"),
        ("everything", r"sharding is 'everything'; expected None, 'fsdp' or a dict"),
    ],
)
def test_rules_that_do_not_fit(sharding, said):
    with pytest.raises((ValueError, TypeError), match=f"^fit: {said}") as caught:
        specs(_tasks.network(), sharding, runtime.mesh(data=4, model=2))
    assert "\n" not in str(caught.value)


def test_meshes():
    batch = {"x": np.zeros((12, 3)), "scale": np.zeros(())}
    assert dict(_sharding.training_mesh(None, batch).shape) == {"data": 6, "model": 1}
    assert dict(_sharding.training_mesh(3, batch).shape) == {"data": 3, "model": 1}
    assert dict(_sharding.training_mesh(jax.devices()[2:4], batch).shape) == {"data": 2, "model": 1}
    assert dict(_sharding.training_mesh(runtime.mesh(data=4, model=2), batch).shape) == {"data": 4, "model": 2}
    assert _sharding.batch_specs(batch, runtime.mesh(data=4, model=1)) == {"x": P("data"), "scale": P()}
    with pytest.raises(
        ValueError, match=r"^fit: batch, leaf 'x', is of 12 examples; expected a multiple of the mesh's 8"
    ):
        _sharding.training_mesh(8, batch)
    with pytest.raises(ValueError, match=r"^fit: devices is a mesh of chains=2 x data=4; expected one with an axis"):
        _sharding.training_mesh(runtime.mesh(data=4), batch)
    with pytest.raises(ValueError, match=r"^mesh: model is 2; expected None beside chains"):
        runtime.mesh(chains=2, model=2)
    with pytest.raises(ValueError, match=r"^mesh: data x model is 4 x 3; expected at most 8 devices"):
        runtime.mesh(data=4, model=3)


def test_a_batch_that_the_mesh_does_not_divide(tmp_path):
    with pytest.raises(ValueError, match=r"^fit: batch, leaf 'x', is of 12 examples; expected a multiple of") as caught:
        jaxprob.fit(_tasks.network(), _tasks.arrays(12), steps=3, devices=8, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_cost_counts_loops_and_shares():
    from jaxprob import scan

    def loss(params, batch, key):
        def step(x, _):
            return jnp.tanh(x @ params["w"]), None

        x, _ = scan.scan(step, batch, jnp.zeros(10))
        return jnp.mean(x**2)

    task = learning.Task(lambda key: {"w": jnp.zeros((32, 32))}, loss, optax.adam(1e-3))
    data = learning.data.arrays(np.zeros((64, 32), np.float32), 16)
    alone = runtime.training_cost(task, data, devices=1)
    # Ten products forward, ten for the inputs and ten for the weights; without a gradient to the batch one is less.
    product = 2 * 16 * 32 * 32
    assert 28 * product <= alone.flops <= 31 * product
    assert (alone.parameters, alone.devices, alone.data) == (1024, 1, 64 * 32 * 4)
    # Parameters and two moments, and a batch.
    assert 0 <= alone.arguments - (3 * 4096 + 16 * 32 * 4) < 200
    many = runtime.training_cost(task, data, devices=runtime.mesh(data=4, model=2), sharding={"w": (None, "model")})
    assert many.flops == alone.flops
    assert 0 <= many.arguments - (3 * 4096 // 2 + 4 * 32 * 4) < 200
