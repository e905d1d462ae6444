"""Flows of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

from jaxprob import distributions as d
from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-10}
SHAPE = (4, 4, 1)


def flow(shape=SHAPE, levels=2, context_size=0, dtype=jnp.float32, seed=1, steps=2, scale=0.2):
    made = flows.glow(levels, steps, 4).init(jax.random.key(0), shape, context_size=context_size, dtype=dtype)
    return check.perturbed(made, seed, scale)


def flat(bijector, shape):
    """The bijector of images as one of vectors."""
    return _Flat(bijector, shape)


class _Flat:
    def __init__(self, bijector, shape):
        self.bijector, self.shape = bijector, shape

    def forward(self, u):
        return self.forward_and_log_det(u)[0]

    def forward_and_log_det(self, u):
        x, log_det = self.bijector.forward_and_log_det(u.reshape(*u.shape[:-1], *self.shape))
        return x.reshape(u.shape), log_det

    def inverse_and_log_det(self, x):
        u, log_det = self.bijector.inverse_and_log_det(x.reshape(*x.shape[:-1], *self.shape))
        return u.reshape(x.shape), log_det


jax.tree_util.register_pytree_node(_Flat, lambda f: ([f.bijector], f.shape), lambda shape, parts: _Flat(*parts, shape))


@DTYPES
def test_inverse_and_log_determinant(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        # A rounding of float32 is more than the tolerance after steep maps, and far out, where scales reach exp(12).
        made = flat(flow(dtype=dtype, scale=0.1 if dtype == jnp.float32 else 0.2).bijector, SHAPE)
        at = check.points(16, dtype)
        check.check_map(made, at[:6] if dtype == jnp.float32 else at, TOLERANCE[dtype])


def test_images_of_another_shape():
    shape = (2, 6, 3)
    made = flow(shape, levels=1, scale=0.1).bijector
    images = jax.random.normal(jax.random.key(1), (2, 3, *shape))
    x, log_det = jax.jit(made.forward_and_log_det)(images)
    back, back_log_det = jax.jit(made.inverse_and_log_det)(x)
    assert x.shape == images.shape == made.forward_shape(images.shape) == made.inverse_shape(images.shape)
    np.testing.assert_allclose(back, images, atol=1e-4)
    np.testing.assert_allclose(back_log_det, -log_det, atol=1e-4)
    np.testing.assert_allclose(made.forward(images[1, 2]), x[1, 2], atol=1e-5)


def test_half_of_the_channels_leave_at_each_level():
    made = flow().bijector
    inner = made.bijectors[1]
    assert isinstance(inner, flows.LastChannels)
    assert inner.kept == 2
    u = jax.random.normal(jax.random.key(1), (2, 2, 4))
    x = inner.forward(u)
    np.testing.assert_array_equal(x[..., :2], u[..., :2])
    np.testing.assert_array_equal(x[..., 2:], inner.bijector.forward(u[..., 2:]))
    assert np.abs(x[..., 2:] - u[..., 2:]).min() > 0


def test_each_pixel_depends_on_all_noise():
    jacobian = jax.jacfwd(flow(steps=4, scale=0.5).bijector.forward)(jnp.ones(SHAPE)).reshape(16, 16)
    assert (np.abs(np.asarray(jacobian)) > 0).all()


def test_convolutions_are_scipy_s():
    network = check.perturbed(flows.Convolutions.init(jax.random.key(0), 2, 3, 2), 1)
    images = np.random.default_rng(0).normal(size=(5, 4, 2)).astype(np.float32)
    hidden = images
    for i, (kernel, bias) in enumerate(zip(network.kernels, network.biases, strict=True)):
        kernel = np.asarray(kernel)
        hidden = np.stack(
            [
                sum(signal.correlate2d(hidden[..., j], kernel[..., j, k], "same") for j in range(kernel.shape[2]))
                for k in range(kernel.shape[3])
            ],
            axis=-1,
        ) + np.asarray(bias)
        hidden = np.maximum(hidden, 0) if i < 2 else hidden
    np.testing.assert_allclose(network(jnp.asarray(images)), hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network(jnp.asarray(images)[None, None])[0, 0], hidden, rtol=1e-4, atol=1e-5)


def test_draws_have_the_density():
    made = flow((2, 2, 1), levels=1, scale=0.3)
    x, log_prob = jax.jit(lambda made: made.sample_and_log_prob(jax.random.key(5), (4000,)))(made)
    np.testing.assert_allclose(log_prob, jax.jit(made.log_prob)(x), atol=2e-3)
    # E[q(x) / p(x)] is 1 for draws of p and any density q that is narrower: a z-score, 1 in 10,000 of which fails by
    # chance.
    q = stats.multivariate_normal(np.mean(x, axis=0).reshape(-1), 0.25 * np.cov(np.reshape(x, (-1, 4)).T))
    ratios = np.exp(q.logpdf(np.reshape(x, (-1, 4))) - np.asarray(log_prob))
    assert abs(ratios.mean() - 1) < 3.9 * ratios.std() / np.sqrt(len(ratios))
    assert ratios.std() / np.sqrt(len(ratios)) < 0.1


def test_contexts():
    made = flow(context_size=2)
    contexts = jnp.array([[1.0, -2.0], [-1.0, 0.5]])
    images = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    found = jax.jit(jax.vmap(lambda context: made.given(context).log_prob(images)))(contexts)
    assert found.shape == (2, 3)
    assert np.abs(found[0] - found[1]).min() > 1e-3
    np.testing.assert_allclose(made.given(contexts[1]).log_prob(images[2]), found[1, 2], rtol=1e-4)


def test_far_out_everything_is_finite():
    check_far = jnp.asarray([[1e4] * 16, [-1e4, 1e4] * 8, [0.0] * 16], jnp.float32)
    made = flat(flow().bijector, SHAPE)
    for value in jax.tree.leaves((check.densities(made, check_far), check.forward(made, check_far))):
        assert np.isfinite(value).all()


def inner_steps(made):
    return made.bijector.bijectors[1].bijector.bijectors[1]


def test_it_starts_as_the_standard_normal():
    x = check.points(16, jnp.float32)[:5]
    start = flows.glow(2, 2, 4).init(jax.random.key(0), SHAPE)
    np.testing.assert_allclose(start.log_prob(x.reshape(-1, *SHAPE)), stats.norm.logpdf(x).sum(axis=-1), rtol=1e-5)
    assert isinstance(start, d.Transformed)
    assert start.event_shape == SHAPE
    first, second = (part.layers.bijectors[0].network for part in (start.bijector.bijectors[2], inner_steps(start)))
    numbers = np.concatenate([np.asarray(network.kernels[1]).reshape(-1) for network in (first, second)])
    assert len(np.unique(numbers)) == numbers.size  # of each step and level its own


def test_steps_cost_no_program():
    images = jnp.zeros((3, *SHAPE))
    few, many = (flow(levels=1, steps=steps) for steps in (2, 16))
    lines = [str(jax.make_jaxpr(jax.grad(lambda f: jnp.sum(f.log_prob(images))))(f)).count(" = ") for f in (few, many)]
    assert lines[0] == lines[1]


def test_all_leaves_are_real_and_trained():
    images = check.points(16, jnp.float32)[:5].reshape(-1, *SHAPE)
    gradients = jax.jit(jax.grad(lambda made: jnp.sum(made.log_prob(images))))(flow())
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert leaf.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.glow(0), "levels is 0"),
        (lambda: flows.glow(1, 0), "steps is 0"),
        (lambda: flows.glow(1, 1, 0), "hidden is 0"),
        (lambda: flows.glow(2).init(jax.random.key(0), (8, 6, 1)), "multiples of 4 for 2 levels"),
        (lambda: flows.glow(1).init(jax.random.key(0), 8), "height, width, channels"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
