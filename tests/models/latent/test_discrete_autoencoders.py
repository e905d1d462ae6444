"""Autoencoders with categories, two levels and codes against enumeration and formulas."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob import learning, scan
from jaxprob.distributions._one_hot import OneHotCategorical
from jaxprob.inference import vi
from jaxprob.models import latent

XS = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 5)))


def moved(params, scale=0.5):
    return jax.tree.map(lambda p: p + scale * jax.random.normal(jax.random.key(p.size), p.shape, p.dtype), params)


def train(init, loss, xs, steps=400, rate=1e-2):
    task = learning.Task(init, loss, optax.adam(rate))
    training = learning.training(task)

    @jax.jit
    def run(key, xs):
        def step(state, i):
            return training.step(jax.random.fold_in(key, i), state, xs)

        return scan.scan(step, training.init(task.init(key)), jnp.arange(steps))

    return run(jax.random.key(0), xs)


@pytest.fixture(scope="module")
def categorical():
    model = latent.categorical_autoencoder(5, 2, 3, 4)
    return model, moved(model.init(jax.random.key(0)))


def enumerated(model, params):
    """The mean bound over XS, in NumPy from the probabilities and the likelihoods of all nine pairs."""
    total = 0.0
    for x in XS:
        q = np.exp(jax.nn.log_softmax(model.recognition(params, x).logits))
        for i, j in itertools.product(range(3), repeat=2):
            z = jnp.eye(3)[jnp.array([i, j])]
            log_p = float(model.likelihood(params, z).log_prob(x)) - 2 * np.log(3)
            total += q[0, i] * q[1, j] * (log_p - np.log(q[0, i] * q[1, j]))
    return total / len(XS)


def test_the_exact_bound_of_categories_is_enumerated_and_others_are_as_exact_or_near(categorical):
    """Two z-scores of values below 4.5, and of one gradient direction each: a false alarm in 30,000 runs."""
    model, params = categorical
    expected = enumerated(model, params)
    exact = vi.amortized_elbo(model, gradient="exact")
    (value, metrics), slopes = jax.value_and_grad(exact.loss, has_aux=True)(params, XS, jax.random.key(0))
    np.testing.assert_allclose(-value, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"], metrics["log_likelihood"] - metrics["kl"], rtol=1e-5)
    flat = jax.flatten_util.ravel_pytree(slopes)[0]

    def repeats(**options):
        objective = vi.amortized_elbo(model, **options)

        def one(i):
            value, slope = jax.value_and_grad(lambda p: objective.loss(p, XS, jax.random.key(i))[0])(params)
            return value, jax.flatten_util.ravel_pytree(slope)[0] @ flat

        return (np.asarray(a, float) for a in jax.jit(jax.vmap(one))(jnp.arange(2000)))

    length = float(flat @ flat)
    for options in ({"gradient": "score", "draws": 2}, {"gradient": "rebar"}):
        values, along = repeats(**options)
        z = [(a.mean() - b) / (a.std() / np.sqrt(2000)) for a, b in ((values, float(value)), (along, length))]
        assert np.abs(z).max() < 4.5, (options, z)
    # With a bias: values of the first are exact, and its gradient points the same way.
    values, along = repeats(gradient="straight_through")
    assert abs(values.mean() - float(value)) < 4.5 * values.std() / np.sqrt(2000)
    assert 0.5 * length < along.mean() < 2 * length
    values, along = repeats(gradient="gumbel_softmax", temperature=0.05)
    assert abs(values.mean() - float(value)) < 0.1
    # The importance-weighted bound by VIMCO lies above.
    objective = vi.amortized_elbo(model, 10, bound="importance_weighted", gradient="score")
    bounds = jax.jit(jax.vmap(lambda i: objective.loss(params, XS, jax.random.key(i))[0]))(jnp.arange(500))
    assert -bounds.mean() > expected + 0.01


def test_indicators_are_a_law():
    law = OneHotCategorical(jnp.array([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]]))
    draws = law.sample(jax.random.key(0), 4000)
    assert draws.shape == (4000, 2, 3)
    assert bool(jnp.all(draws.sum(-1) == 1))
    assert np.abs((draws.mean(0) - law.probs) / 0.008).max() < 4.5
    eye = jnp.expand_dims(jnp.eye(3), 1)
    np.testing.assert_allclose(jnp.exp(law.log_prob(eye)).T, law.probs, rtol=1e-6)
    assert law.log_prob(jnp.full((2, 3), 1 / 3)).tolist() == [-np.inf, -np.inf]
    np.testing.assert_allclose(law.entropy()[1], 1.5 * np.log(2), rtol=1e-6)
    uniform = OneHotCategorical(logits=jnp.zeros((2, 3)))
    np.testing.assert_allclose(vi.kl_divergence(law, uniform), np.log(3) - law.entropy(), rtol=1e-5)


def test_two_levels_have_the_density_of_their_parts():
    model = latent.hierarchical_autoencoder(5, (2, 3), 4)
    params = moved(model.init(jax.random.key(0)))
    x, z = XS[0], jnp.arange(5.0) / 5

    def normal(network, given, value):
        loc, log_scale = np.split(np.asarray(params[network](given), float), 2)
        return np.sum(-0.5 * ((value - loc) / np.exp(log_scale)) ** 2 - log_scale - 0.5 * np.log(2 * np.pi))

    lower, upper = z[:2], z[2:]
    standard = np.sum(-0.5 * np.asarray(upper) ** 2 - 0.5 * np.log(2 * np.pi))
    np.testing.assert_allclose(model.prior(params).log_prob(z), standard + normal("down", upper, lower), rtol=1e-5)
    expected = normal("encoder", x.astype(float), lower) + normal("up", lower, upper)
    guide = model.recognition(params, x)
    np.testing.assert_allclose(guide.log_prob(z), expected, rtol=1e-5)
    draws, log_prob = jax.jit(lambda key: guide.sample_and_log_prob(key, (2, 3)))(jax.random.key(1))
    assert draws.shape == (2, 3, 5)
    np.testing.assert_allclose(log_prob, guide.log_prob(draws), rtol=1e-5)
    # Draws of the prior: E exp(log q - log p) of another law of the same kind is 1. One z-score below 4.
    prior = model.prior(params)
    draws = np.asarray(prior.sample(jax.random.key(2), 4000), float)
    assert np.abs(draws[:, 2:].mean(0) * np.sqrt(4000)).max() < 4.5
    means = np.asarray(jax.vmap(params["down"])(jnp.asarray(draws[:, 2:], jnp.float32)), float)
    white = (draws[:, :2] - means[:, :2]) / np.exp(means[:, 2:])
    assert np.abs(white.mean(0) * np.sqrt(4000)).max() < 4.5
    assert np.abs(((white**2).mean(0) - 1) * np.sqrt(2000)).max() < 4.5
    with pytest.raises(TypeError, match="Estimate it from draws"):
        vi.amortized_elbo(model).loss(params, XS, jax.random.key(0))
    loss = vi.amortized_elbo(model, kl="sampled").loss
    slopes = jax.jit(jax.grad(loss, has_aux=True))(params, XS, jax.random.key(0))[0]
    assert all(bool(jnp.all(jnp.isfinite(g))) and bool(jnp.any(g != 0)) for g in jax.tree.leaves(slopes))


def test_codes_are_the_nearest_and_gradients_go_where_they_should():
    model = latent.vector_quantized_autoencoder(5, 2, 6, 3, 4, commitment=0.5)
    params = moved(model.init(jax.random.key(0)))
    x = XS[1]
    encoded = np.asarray(params["encoder"](x.astype(jnp.float32)), float).reshape(2, 3)
    book = np.asarray(params["codebook"], float)
    away = ((encoded[:, None] - book[None]) ** 2).sum(-1)
    codes = model.encode(params, x)
    assert codes.tolist() == away.argmin(1).tolist()
    log_lik = float(model.decode(params, codes).log_prob(x))
    value, metrics = model.loss(params, x[None], jax.random.key(0))
    np.testing.assert_allclose(value, -log_lik + 1.5 * away.min(1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["log_likelihood"], log_lik, rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"], log_lik - 2 * np.log(6), rtol=1e-5)
    np.testing.assert_allclose(metrics["distance"], away.min(1).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["perplexity"], len(set(codes.tolist())), rtol=1e-5)
    slopes = jax.grad(lambda p: model.loss(p, x[None], jax.random.key(0))[0])(params)
    # A code moves towards what was given it, and the others stay; the likelihood does not move it.
    expected = np.zeros_like(book)
    for variable, code in enumerate(codes.tolist()):
        expected[code] += 2 * (book[code] - encoded[variable])
    np.testing.assert_allclose(slopes["codebook"], expected, rtol=1e-4, atol=1e-5)
    # The encoder gets the gradient at the codes, and that of the commitment.
    at_codes = jax.grad(lambda e: -model.law(params["decoder"](e.reshape(-1))).log_prob(x))(params["codebook"][codes])
    outer = at_codes + 2 * 0.5 * (encoded - book[codes])
    _, back = jax.vjp(lambda p: p(x.astype(jnp.float32)), params["encoder"])
    for found, wanted in zip(
        jax.tree.leaves(slopes["encoder"]), jax.tree.leaves(back(jnp.ravel(outer))[0]), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["categorical", "hierarchical", "vector_quantized"])
def test_training_learns_two_kinds_of_examples(kind):
    """Independent bits have -6.93 nats, the truth -2.68."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 512)
    xs = jnp.asarray(np.where(np.arange(10) % 2, group[:, None], 1 - group[:, None]) ^ (rng.random((512, 10)) < 0.05))
    if kind == "categorical":
        objective = vi.amortized_elbo(latent.categorical_autoencoder(10, 1, 4, 16), gradient="gumbel_softmax")
    elif kind == "hierarchical":
        objective = vi.amortized_elbo(latent.hierarchical_autoencoder(10, (2, 2), 16), kl="sampled")
    else:
        objective = latent.vector_quantized_autoencoder(10, 1, 4, 4, 16)
    _, info = train(objective.init, objective.loss, xs.astype(jnp.int32))
    assert -4.0 < float(info["elbo"][-50:].mean()) < -2.3, info["elbo"][-50:].mean()


def test_bad_input_is_one_line():
    for message, call in {
        r"categories is 1; expected a whole number, 2": lambda: latent.categorical_autoencoder(5, 2, 1),
        r"latents is 3; expected two sizes": lambda: latent.hierarchical_autoencoder(5, 3),
        r"codes is 1; expected a whole number, 2": lambda: latent.vector_quantized_autoencoder(5, 2, 1),
        r"commitment is 0; expected a positive": lambda: latent.vector_quantized_autoencoder(5, 2, 4, commitment=0),
        r"kl is 'sampled'; expected 'closed' with gradient='exact'": lambda: vi.amortized_elbo(
            latent.autoencoder(4, 2), gradient="exact", kl="sampled"
        ),
        r"temperature is 0.0; expected a positive number": lambda: vi.amortized_elbo(
            latent.autoencoder(4, 2), temperature=0
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    model = latent.autoencoder(5, 2, 4)
    with pytest.raises(TypeError, match="gradient is 'rebar' for a MultivariateNormalDiagonal; expected a guide that"):
        vi.amortized_elbo(model, gradient="rebar").loss(model.init(jax.random.key(0)), XS, jax.random.key(0))
