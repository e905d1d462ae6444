"""Networks with random parameters (S192): one model for every transformation, with the density written by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from jaxprob import models
from jaxprob.distributions import HalfNormal, Normal

KEY = jax.random.key(0)


class Network(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x):
        hidden = jnp.tanh(nn.Dense(self.width, name="hidden")(x))
        return nn.Dense(1, name="out")(hidden)[..., 0]


NETWORK = Network()


@models.joint
def regression(xs, network=NETWORK):
    net = yield from models.random_net("net", network, xs, prior=Normal(0.0, 2.0))
    noise = yield "noise", HalfNormal(0.5)
    yield "ys", Normal(net(xs), noise)


# A gap in the middle of one input, as in the usual check of a Bayesian network.
XS = np.concatenate([np.linspace(-2, -1, 10), np.linspace(1, 2, 10)])[:, None].astype(np.float32)
YS = np.sin(2 * XS[:, 0]).astype(np.float32)


@pytest.fixture(scope="module")
def posterior():
    return regression(XS).condition(ys=YS)


def by_hand(position):
    p = {name: np.asarray(value, np.float64) for name, value in position.items()}
    hidden = np.tanh(XS @ p["net.hidden.kernel"] + p["net.hidden.bias"])
    out = (hidden @ p["net.out.kernel"] + p["net.out.bias"])[:, 0]
    noise = np.exp(p["noise"])
    prior = sum(st.norm.logpdf(p[name], 0, 2).sum() for name in p if name != "noise")
    return prior + st.halfnorm.logpdf(noise, scale=0.5) + p["noise"] + st.norm.logpdf(YS, out, noise).sum()


def test_leaves_are_sites(posterior):
    assert posterior.names == ("net.hidden.bias", "net.hidden.kernel", "net.out.bias", "net.out.kernel", "noise")
    assert posterior.dim == 8 + 8 + 1 + 8 + 1
    assert posterior.sites["net.hidden.kernel"].shape == (1, 8)


def test_same_model_by_hand_under_jit_vmap_and_grad(posterior):
    keys = jax.random.split(KEY, 5)
    positions = jax.vmap(posterior.initial)(keys)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(posterior.log_density)))(positions)
    loop = [{name: value[i] for name, value in positions.items()} for i in range(5)]
    np.testing.assert_allclose(values, [by_hand(position) for position in loop], rtol=1e-5)
    for leaf, index in (("net.out.bias", 0), ("net.hidden.kernel", (0, 3)), ("noise", ())):
        up, down = dict(loop[2]), dict(loop[2])
        up[leaf] = np.asarray(up[leaf], np.float64).copy()
        down[leaf] = up[leaf].copy()
        up[leaf][index] += 1e-5
        down[leaf][index] -= 1e-5
        difference = (by_hand(up) - by_hand(down)) / 2e-5
        np.testing.assert_allclose(gradients[leaf][2][index], difference, rtol=1e-3, atol=1e-2)


def test_prior_for_each_leaf():
    def prior(leaf, shape):
        return Normal(jnp.zeros(shape), 0.5) if leaf.endswith("bias") else Normal(0.0, shape[0] ** -0.5)

    @models.joint
    def scaled(xs):
        net = yield from models.random_net("net", Network(4), xs, prior=prior)
        yield "outputs", models.deterministic(net(xs))

    draw = scaled(XS).sample(KEY, 2000)
    assert draw["outputs"].shape == (2000, 20)
    # The standard deviation of 8000 normal numbers is off by more than 4.5 standard errors with probability 7e-6.
    for leaf, sd in (("net.hidden.bias", 0.5), ("net.out.kernel", 0.5), ("net.hidden.kernel", 1.0)):
        assert abs(float(jnp.std(draw[leaf])) / sd - 1) < 4.5 / np.sqrt(2 * draw[leaf].size)


def test_function_with_hierarchical_prior():
    shapes = {"slope": jax.ShapeDtypeStruct((), jnp.float32), "offset": jax.ShapeDtypeStruct((2,), jnp.float32)}

    @models.joint
    def model(x):
        spread = yield "spread", HalfNormal(1.0)
        net = yield from models.random_net("net", affine, prior=Normal(0.0, spread), params=shapes)
        yield "y", Normal(net(x), 1.0)
        return net

    values = {"spread": 0.5, "net.offset": jnp.array([0.1, 0.2]), "net.slope": 2.0, "y": jnp.zeros(2)}
    expected = (
        st.halfnorm.logpdf(0.5) + st.norm.logpdf([0.1, 0.2, 2.0], 0, 0.5).sum() + st.norm.logpdf([6.1, 6.2]).sum()
    )
    np.testing.assert_allclose(model(3.0).log_prob(values), expected, rtol=1e-5)
    net = jax.jit(model(3.0).returned)(values)
    np.testing.assert_allclose(net(1.0), [2.1, 2.2], rtol=1e-6)


def affine(params, x):
    return params["slope"] * x + params["offset"]


def test_initialisation_is_traced_once_for_many_traces_of_the_density():
    traces = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            traces.append(self.is_initializing())
            return nn.Dense(1)(x)[..., 0]

    posterior = regression(XS, Counted()).condition(ys=YS)
    for _ in range(3):
        jax.make_jaxpr(lambda position: posterior.log_density(position))(posterior.initial(KEY))
    assert traces.count(True) == 1


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(x)


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: models.random_net("net", affine, prior=Normal(0.0, 1.0)), "params is None; .*Pass params="),
        (lambda: models.random_net("net", Network(), prior=Normal(0.0, 1.0)), "inputs is empty; .*example"),
        (lambda: models.random_net("net", Normalised(), XS, prior=Normal(0.0, 1.0)), "variables .*batch_stats"),
        (
            lambda: models.random_net("net", Network(), XS, prior=Normal(jnp.zeros(7), 1.0)),
            r"of shape \(7,\); expected",
        ),
        (
            lambda: models.random_net("net", Network(), XS, prior=lambda leaf, shape: 3.0),
            "prior for 'hidden.bias' is 3.0",
        ),
        (lambda: models.random_net("", Network(), XS, prior=Normal(0.0, 1.0)), "name is ''"),
    ],
)
def test_error_lines(call, pattern):
    with pytest.raises((ValueError, TypeError), match=f"random_net: .*{pattern}"):
        next(call())
