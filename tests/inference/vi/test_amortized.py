"""Amortised bounds against a model whose evidence, bounds and gradients are known by formula or by quadrature."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob import learning
from jaxprob.distributions import Bernoulli, Cauchy, Normal
from jaxprob.inference import vi
from jaxprob.models.latent import LatentVariableModel

XS = np.array([0.7, -1.3, 2.0])


def init(key):
    return {"slope": jnp.asarray(1.5), "noise": jnp.asarray(-0.3), "gain": jnp.asarray(0.4), "width": jnp.asarray(-0.5)}


def prior(params):
    return Normal(jnp.zeros_like(params["slope"]), 1.0)


def likelihood(params, z):
    return Normal(params["slope"] * z, jnp.exp(params["noise"]))


def recognition(params, x):
    return Normal(params["gain"] * x, jnp.exp(params["width"]))


MODEL = LatentVariableModel(init, prior, likelihood, recognition)
PARAMS = {"slope": 1.5, "noise": -0.3, "gain": 0.4, "width": -0.5}


def exact_params():
    """The recognition that is the posterior."""
    precision = 1 + PARAMS["slope"] ** 2 / np.exp(2 * PARAMS["noise"])
    gain = PARAMS["slope"] / np.exp(2 * PARAMS["noise"]) / precision
    return PARAMS | {"gain": gain, "width": -0.5 * np.log(precision)}


def log_evidence(p):
    variance = p["slope"] ** 2 + np.exp(2 * p["noise"])
    return -0.5 * np.mean(XS**2 / variance + np.log(2 * np.pi * variance))


def bound_by_quadrature(p, draws, weight=1.0):
    """The mean over XS of the (importance-weighted) bound of 1 or 2 draws, by Gauss and Hermite in each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    total = 0.0
    for x in XS:
        z = p["gain"] * x + np.exp(p["width"]) * nodes
        log_q = -0.5 * nodes**2 - p["width"]
        log_lik = -0.5 * ((x - p["slope"] * z) / np.exp(p["noise"])) ** 2 - p["noise"] - 0.5 * np.log(2 * np.pi)
        log_w = log_lik + weight * (-0.5 * z**2 - log_q)
        if draws == 1:
            total += weights @ log_w
        else:
            total += weights @ np.logaddexp(log_w[:, None], log_w[None]) @ weights - np.log(2)
    return total / len(XS)


def differences(function, p):
    h = 1e-5
    return {k: (function(p | {k: p[k] + h}) - function(p | {k: p[k] - h})) / (2 * h) for k in p}


def arrays(p):
    return {k: jnp.asarray(v) for k, v in p.items()}


@functools.partial(jax.jit, static_argnums=3)
def repeats(objective, params, keys, number):
    """Values and gradients of independent steps."""
    xs = jnp.asarray(XS)
    step = jax.value_and_grad(lambda p, i: objective.loss(p, xs, jax.random.fold_in(keys, i))[0])
    return jax.vmap(lambda i: step(params, i))(jnp.arange(number))


def z_score(values, expected):
    values = np.asarray(values, float)
    return (values.mean() - expected) / (values.std() / np.sqrt(len(values)))


@pytest.mark.parametrize(
    ("bound", "gradient", "kl", "draws", "weight"),
    [
        ("elbo", "path", "closed", 1, 0.3),
        ("elbo", "path", "sampled", 2, 0.3),
        ("elbo", "stick_the_landing", "sampled", 1, 1.0),
        ("elbo", "score", "closed", 2, 0.3),
        ("elbo", "score", "sampled", 1, 1.0),
        ("importance_weighted", "path", "closed", 2, 1.0),
        ("importance_weighted", "doubly_reparameterized", "closed", 2, 1.0),
        ("importance_weighted", "score", "closed", 2, 1.0),
    ],
)
def test_bounds_and_gradients_are_those_of_quadrature(bound, gradient, kl, draws, weight):
    """40 z-scores below 4.5: a false alarm in 3,600 runs."""
    objective = vi.amortized_elbo(MODEL, draws, bound=bound, gradient=gradient, kl=kl, kl_weight=weight)
    values, gradients = repeats(objective, arrays(PARAMS), jax.random.key(3), 20_000)
    oracle = lambda p: -bound_by_quadrature(p, draws if bound != "elbo" else 1, weight)  # noqa: E731
    expected = {"value": oracle(PARAMS)} | differences(oracle, PARAMS)
    found = {"value": values} | gradients
    scores = {name: z_score(found[name], expected[name]) for name in expected}
    assert max(map(abs, scores.values())) < 4.5, scores


def test_the_exact_posterior_makes_the_bound_the_evidence_and_its_gradient_quiet():
    params = arrays(exact_params())
    slopes = differences(log_evidence, PARAMS)
    for bound, gradient in (("elbo", "stick_the_landing"), ("importance_weighted", "doubly_reparameterized")):
        objective = vi.amortized_elbo(MODEL, 5, bound=bound, gradient=gradient, kl="sampled")
        values, gradients = repeats(objective, params, jax.random.key(0), 20_000)
        np.testing.assert_allclose(values, -log_evidence(PARAMS), rtol=1e-5)
        for name in ("gain", "width"):
            np.testing.assert_allclose(gradients[name], 0, atol=1e-5)
        # Fisher's identity: the mean gradient of the bound is that of the evidence. 4 z-scores below 4.5.
        for name in ("slope", "noise"):
            assert abs(z_score(gradients[name], -slopes[name])) < 4.5


def test_more_draws_raise_the_importance_weighted_bound_to_the_evidence():
    """Differences of means of about 0.2 and 0.05 nats; both are ten standard errors."""
    bounds = []
    for draws in (1, 5, 50):
        objective = vi.amortized_elbo(MODEL, draws, bound="importance_weighted")
        bounds.append(-np.mean(repeats(objective, arrays(PARAMS), jax.random.key(draws), 5000)[0]))
    assert np.all(np.diff([*bounds, log_evidence(PARAMS) + 1e-3]) > 0), bounds


def test_metrics_say_the_bound_whatever_the_weight_and_the_weight_compiles_once():
    traces = []

    @jax.jit
    def loss(objective, key):
        traces.append(0)
        return objective.loss(arrays(PARAMS), jnp.asarray(XS), key)

    key = jax.random.key(5)
    (one, metrics), (half, again) = (loss(vi.amortized_elbo(MODEL, kl_weight=w), key) for w in (1.0, 0.5))
    assert len(traces) == 1
    assert metrics == again
    np.testing.assert_allclose(metrics["elbo"], metrics["log_likelihood"] - metrics["kl"], rtol=1e-6)
    weighted = [metrics["log_likelihood"] - w * metrics["kl"] for w in (1, 0.5)]
    np.testing.assert_allclose([-one, -half], weighted, rtol=1e-6)
    traced = jax.jit(lambda w: vi.amortized_elbo(MODEL, kl_weight=w).loss(arrays(PARAMS), jnp.asarray(XS), key)[0])
    np.testing.assert_allclose(traced(0.5), half, rtol=1e-6)
    task = learning.Task(*vi.amortized_elbo(MODEL), optax.adam(0.1))
    training = learning.training(task)
    _, info = training.step(key, training.init(task.init(jax.random.key(0))), jnp.asarray(XS))
    assert np.isfinite(info["elbo"])


def test_a_corruption_reaches_the_recognition_alone():
    objective = vi.amortized_elbo(MODEL, corrupt=lambda key, x: 0 * x)
    params = arrays(PARAMS | {"width": -20.0})  # draws at the mean of the guide, which is then 0
    found = objective.loss(params, jnp.asarray(XS), jax.random.key(0))[1]["log_likelihood"]
    sd = np.exp(PARAMS["noise"])
    np.testing.assert_allclose(found, np.mean(-0.5 * (XS / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)), rtol=1e-5)


def test_a_conditional_model_takes_pairs():
    shifted = LatentVariableModel(
        init,
        lambda params, c: Normal(c, 1.0),
        lambda params, z, c: Normal(params["slope"] * (z - c), jnp.exp(params["noise"])),
        lambda params, x, c: Normal(params["gain"] * x + c, jnp.exp(params["width"])),
        conditional=True,
    )
    key, xs = jax.random.key(0), jnp.asarray(XS)
    one = vi.amortized_elbo(MODEL).loss(arrays(PARAMS), xs, key)[0]
    two = vi.amortized_elbo(shifted).loss(arrays(PARAMS), (xs, jnp.array([1.0, -2.0, 0.5])), key)[0]
    np.testing.assert_allclose(one, two, rtol=1e-5)
    with pytest.raises(ValueError, match=r"amortized_elbo: batch is .*; expected a pair \(xs, conditions\)"):
        vi.amortized_elbo(shifted).loss(arrays(PARAMS), xs, key)


def test_examples_have_draws_of_their_own_and_the_dtype_is_that_of_the_parameters(x64):
    objective = vi.amortized_elbo(MODEL, kl="sampled")
    for dtype in ("float32", "float64"):
        params = {k: jnp.asarray(v, dtype) for k, v in PARAMS.items()}
        value, metrics = objective.loss(params, jnp.ones(2, dtype), jax.random.key(0))
        assert value.dtype == dtype
        assert all(m.dtype == dtype for m in metrics.values())
        alone = objective.loss(params, jnp.ones(1, dtype), jax.random.key(0))[0]
        assert abs(alone - value) > 1e-3


def test_bad_input_is_one_line():
    for message, arguments in {
        r"amortized_elbo: draws is 0; expected a whole number, 1 or more": {"draws": 0},
        r"amortized_elbo: kl is 'open'; expected 'closed' or 'sampled'": {"kl": "open"},
        r"amortized_elbo: bound is 'iw'; expected one of": {"bound": "iw"},
        r"amortized_elbo: gradient is 'stick_the_landing'; expected one of .* for the bound 'importance_weighted'": {
            "bound": "importance_weighted",
            "gradient": "stick_the_landing",
        },
        r"A closed form has no score to leave out": {"gradient": "stick_the_landing"},
        r"amortized_elbo: kl_weight is -1; expected a number, at least 0": {"kl_weight": -1},
        r"amortized_elbo: kl_weight is nan": {"kl_weight": float("nan")},
        r"expected 1 for the importance-weighted bound": {"kl_weight": 0.5, "bound": "importance_weighted"},
    }.items():
        with pytest.raises(ValueError, match=message):
            vi.amortized_elbo(MODEL, **arguments)
    with pytest.raises(TypeError, match=r"kl_weight is .*function.*Call a schedule with the step"):
        vi.amortized_elbo(MODEL, kl_weight=lambda step: 1.0)
    with pytest.raises(TypeError, match="amortized_elbo: model is 3; expected a LatentVariableModel"):
        vi.amortized_elbo(3)
    with pytest.raises(TypeError, match="LatentVariableModel: prior is None; expected a function"):
        LatentVariableModel(init, None, likelihood, recognition)
    with pytest.raises(ValueError, match="amortized_elbo: batch is .*; expected arrays"):
        vi.amortized_elbo(MODEL).loss(arrays(PARAMS), jnp.zeros(0), jax.random.key(0))
    odd = dataclasses.replace(MODEL, prior=lambda params: Cauchy(0.0, 1.0))
    with pytest.raises(TypeError, match="a Normal beside a Cauchy"):
        vi.amortized_elbo(odd).loss(arrays(PARAMS), jnp.asarray(XS), jax.random.key(0))
    assert vi.amortized_elbo(odd, kl="sampled").loss(arrays(PARAMS), jnp.asarray(XS), jax.random.key(0))[0] > 0


def test_discrete_draws_by_their_score():
    """z is 0 or 1: the bound and its gradient by adding up. 3 z-scores below 4.5."""

    def make(p, x):
        lik = [-0.5 * (x - (p["slope"] * z)) ** 2 - 0.5 * np.log(2 * np.pi) for z in (0, 1)]
        q = 1 / (1 + np.exp(-p["gain"] * x))
        return sum(w * (log_p - np.log(w) + np.log(0.5)) for w, log_p in zip((1 - q, q), lik, strict=True))

    p = {"slope": 1.5, "gain": 0.4}
    oracle = lambda p: -np.mean([make(p, x) for x in XS])  # noqa: E731
    model = LatentVariableModel(
        lambda key: arrays(p),
        lambda params: Bernoulli(0.5),
        lambda params, z: Normal(params["slope"] * z.astype(jnp.float32), 1.0),
        lambda params, x: Bernoulli(logits=params["gain"] * x),
    )
    objective = vi.amortized_elbo(model, 2, gradient="score")
    values, gradients = repeats(objective, arrays(p), jax.random.key(1), 20_000)
    expected = {"value": oracle(p)} | differences(oracle, p)
    found = {"value": values} | gradients
    assert max(abs(z_score(found[k], expected[k])) for k in expected) < 4.5
