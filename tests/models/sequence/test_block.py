"""The residual block: its equation, its gate, dropout and MLP, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxprob.models import sequence
from jaxprob.models.sequence import Core


class Half(Core):
    """y = x / 2 and a count of the inputs."""

    factory = "half"

    def initial_state(self):
        return jnp.zeros(())

    def run(self, xs, state, reset, deterministic):
        return xs / 2, state + xs.shape[0]

    def step(self, x, state=None, *, deterministic=True):
        return x / 2, state + 1


class Mixing(Half):
    """One with a gate of its own."""

    mixes_channels = True


def values(params):
    """The same parameters in float64, with random numbers added so that no ones and zeros are left."""
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda x: np.asarray(x, np.float64) + rng.normal(size=x.shape) * 0.3, params)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), moved), moved["params"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rms(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def layer(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def glu(x, p):
    value, gate = np.split(gelu(x) @ p["dense"]["kernel"] + p["dense"]["bias"], 2, -1)
    return value * expit(gate)


@pytest.mark.parametrize(("norm", "by_hand"), [("rms", rms), ("layer", layer), (None, lambda x, p: x)])
def test_the_equation_of_a_block(rng, norm, by_hand):
    xs = rng.normal(2, 3, size=(6, 4))
    net = sequence.block(Half(width=4), norm=norm)
    params, p = values(jax.jit(net.init)(jax.random.key(0), jnp.asarray(xs, jnp.float32)))
    wanted = xs + glu(by_hand(xs, p.get("norm_core")) / 2, p["unit"])
    ys, state = net.apply(params, jnp.asarray(xs, jnp.float32))
    np.testing.assert_allclose(ys, wanted, rtol=2e-5, atol=2e-5)
    assert state == 6
    y, state = net.apply(params, jnp.asarray(xs[0], jnp.float32), jnp.float32(5), method="step")
    np.testing.assert_allclose(y, wanted[0], rtol=2e-5, atol=2e-5)
    assert state == 6


def test_the_equation_with_an_mlp(rng):
    xs = rng.normal(size=(5, 4))
    net = sequence.block(Mixing(width=4), mlp=1.5)
    params, p = values(jax.jit(net.init)(jax.random.key(0), jnp.asarray(xs, jnp.float32)))
    assert p["half"]["up"]["kernel"].shape == (4, 6)
    half = xs + rms(xs, p["norm_core"]) / 2
    hidden = gelu(rms(half, p["norm_mlp"]) @ p["half"]["up"]["kernel"] + p["half"]["up"]["bias"])
    wanted = half + hidden @ p["half"]["down"]["kernel"] + p["half"]["down"]["bias"]
    np.testing.assert_allclose(net.apply(params, jnp.asarray(xs, jnp.float32))[0], wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "gate", "gated"), [(Half, "auto", 1), (Half, None, 0), (Mixing, "auto", 0), (Mixing, "glu", 1)]
)
def test_only_cores_that_mix_no_channels_get_a_gate(kind, gate, gated):
    net = sequence.block(kind(width=4), gate=gate)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, 4)))["params"]
    assert ("unit" in params) == gated


def test_dropout_drops_a_share_of_the_residual_and_keeps_its_mean():
    net, xs = sequence.block(Mixing(width=50), norm=None, dropout=0.2), jnp.ones((400, 50))
    np.testing.assert_allclose(net.apply({}, xs)[0], 1.5)
    ys, _ = net.apply({}, xs, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(ys), [1.0, 1.625])
    # 20,000 numbers: four standard deviations of the share, a false alarm in 16,000.
    assert abs(np.mean(ys == 1.0) - 0.2) < 4 * np.sqrt(0.16 / 20_000)


def test_bfloat16_in_is_bfloat16_out_near_the_float32_values(rng):
    xs = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    net = sequence.block(Half(width=4), mlp=2, norm="layer")
    params = jax.jit(net.init)(jax.random.key(0), xs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    ys, _ = net.apply(params, xs.astype(jnp.bfloat16))
    assert ys.dtype == jnp.bfloat16
    np.testing.assert_allclose(ys.astype(jnp.float32), net.apply(params, xs)[0], rtol=0.03, atol=0.03)


def test_gradients_are_finite_where_the_norm_sees_zeros():
    net, xs = sequence.block(Half(width=4), mlp=2), jnp.zeros((3, 4))
    params = jax.jit(net.init)(jax.random.key(0), xs)
    found = jax.jit(jax.grad(lambda params, xs: jnp.sum(net.apply(params, xs)[0]), (0, 1)))(params, xs)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(found))


def test_two_blocks_of_one_core_share_no_parameters():
    core = sequence.block(Half(width=4))
    net = sequence.stack([core, core], depth=2, inputs=None)
    blocks = jax.jit(net.init)(jax.random.key(0), jnp.ones((2, 4)))["params"]["layer"]
    kernels = [blocks[name]["core"]["unit"]["dense"]["kernel"] for name in ("blocks_0", "blocks_1")]
    assert not np.allclose(*kernels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, r"sequence\.block: norm is batch; expected one of 'rms', 'layer', None\."),
        ({"gate": "silu"}, "gate is silu; expected one of 'auto', 'glu', None"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number from 0 to less than 1"),
        ({"dropout": True}, "dropout is True"),
        ({"mlp": 0}, "mlp is 0; expected a positive number, a multiple of the width, or None"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        sequence.block(Half(width=4), **options)


def test_what_is_no_core_is_an_error():
    message = r"sequence\.block: core is 64; expected a sequence core\. For example sequence\.gru"
    with pytest.raises(TypeError, match=message):
        sequence.block(64)
