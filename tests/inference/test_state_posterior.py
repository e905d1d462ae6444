"""Posteriors of states: densities against NumPy and SciPy, and guides fitted to them against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob import distributions as d
from jaxprob import inference, models
from jaxprob.inference import hmm, vi
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian, StateSpaceModel

WALK = StateSpaceModel(d.Normal(0.0, 1.0), lambda x, t: d.Normal(x, 1.0), lambda x, t: d.Normal(x, 1.0))
TIMES = 6
YS = np.array([[0.3, -1.0], [1.2, np.nan], [0.1, 0.4], [np.nan, np.nan], [-0.8, 2.0], [0.5, 0.6]])


def linear(dtype=jnp.float32):
    parts = {
        "initial_mean": [0.5, -0.2],
        "initial_covariance": [[1.0, 0.3], [0.3, 0.5]],
        "dynamics": [[0.9, 0.2], [-0.1, 0.7]],
        "dynamics_covariance": [[0.3, 0.05], [0.05, 0.2]],
        "emission": [[1.0, 0.0], [0.5, 1.0]],
        "emission_covariance": [[0.4, 0.1], [0.1, 0.6]],
        "dynamics_offset": [0.1, 0.0],
    }
    return LinearGaussian(**{name: jnp.asarray(value, dtype) for name, value in parts.items()})


def exact(model, ys):
    """Log density of states and what is seen as a quadratic: mean and precision of the states, in float64 NumPy."""
    m = {name: np.asarray(getattr(model, name), float) for name in model.__dataclass_fields__ if name != "time_varying"}
    n, size = 2, 2 * len(ys)
    precision, linear_term = np.zeros((size, size)), np.zeros(size)

    def add(rows, offset, covariance):  # N(rows x; offset, covariance)
        inverse = np.linalg.inv(covariance)
        precision[:] += rows.T @ inverse @ rows
        linear_term[:] += rows.T @ inverse @ offset

    def pick(t):
        return np.eye(size)[n * t : n * (t + 1)]

    add(pick(0), m["initial_mean"], m["initial_covariance"])
    for t in range(len(ys) - 1):
        add(pick(t + 1) - m["dynamics"] @ pick(t), m["dynamics_offset"], m["dynamics_covariance"])
    for t, y in enumerate(ys):
        seen = ~np.isnan(y)
        if seen.any():
            noise = m["emission_covariance"][np.ix_(seen, seen)]
            add(m["emission"][seen] @ pick(t), y[seen] - m["emission_offset"][seen], noise)
    return np.linalg.solve(precision, linear_term), precision


def covariance_of(guide):
    """Of a `vi.markov` guide, by its definition, in the units of the position."""
    law = guide.distribution.bijector
    loc, log_diagonal, lower, coupling = (
        np.asarray(x, float) for x in (law.loc, law.log_diagonal, law.lower, law.coupling)
    )
    times, n = loc.shape
    root = np.zeros((times * n, times * n))
    for t in range(times):
        now = slice(n * t, n * (t + 1))
        if t:
            root[now] = coupling[t - 1] @ root[n * (t - 1) : n * t]
        root[now, now] = np.tril(lower[t], -1) + np.diag(np.exp(log_diagonal[t]))
    return root @ root.T


def test_the_density_is_that_of_numpy(x64):
    posterior = inference.state_posterior(linear(jnp.float64), jnp.asarray(YS))
    mean, precision = exact(linear(jnp.float64), YS)
    at = np.random.default_rng(0).normal(size=(2, TIMES, 2))
    found = jax.jit(jax.vmap(posterior.log_density))({"states": jnp.asarray(at)})
    expected = [-0.5 * (x.ravel() - mean) @ precision @ (x.ravel() - mean) for x in at]
    np.testing.assert_allclose(found[0] - found[1], expected[0] - expected[1], rtol=1e-10)


def _later(x, t):
    return d.Normal(x + t.astype(x.dtype), 1.0)


def test_a_walk_of_one_number_has_all_its_terms():
    walk = StateSpaceModel(d.Normal(0.0, 2.0), _later, lambda x, t: d.Poisson(jnp.exp(x)))
    ys = jnp.array([1, 0, 4])
    x = np.array([0.2, -0.5, 1.0])
    posterior = inference.state_posterior(walk, ys, missing=jnp.array([False, True, False]))
    prior = stats.norm.logpdf(x[0], 0, 2) + stats.norm.logpdf(x[1:], x[:-1] + [0, 1], 1).sum()
    seen = stats.poisson.logpmf([1, 4], np.exp(x[[0, 2]])).sum()
    position = {"states": jnp.asarray(x, jnp.float32)}
    np.testing.assert_allclose(jax.jit(posterior.split_log_density)(position), (prior, seen), rtol=1e-5)
    one = inference.state_posterior(walk, ys[:1])
    expected = stats.norm.logpdf(0, 0, 2) + stats.poisson.logpmf(1, 1)
    np.testing.assert_allclose(jax.jit(one.log_density)({"states": jnp.zeros(1)}), expected, rtol=1e-6)


def test_draws_of_the_prior_and_predictions_have_the_shapes_of_the_model():
    posterior = inference.state_posterior(WALK, jnp.array([1.0, jnp.nan, 3.0]))
    assert jax.jit(posterior.sample_prior)(jax.random.key(0))["states"].shape == (3,)
    drawn = jax.jit(posterior.predict)(jax.random.key(1), {"states": jnp.zeros((5, 3))})
    # Normal ones around states of 0: |z| < 4 for each of 15 fails once in 1,000.
    assert drawn["ys"].shape == (5, 3)
    assert np.abs(drawn["ys"]).max() < 4


def growth(parameters):
    return StateSpaceModel(
        d.LogNormal(0.0, 1.0),
        jax.tree_util.Partial(_grown, parameters["rate"]),
        jax.tree_util.Partial(_seen),
    )


def _grown(rate, x, t):
    return d.LogNormal(jnp.log(x) + rate, 0.5)


def _seen(x, t):
    return d.Normal(x, 1.0)


def test_parameters_and_positive_states_are_unconstrained():
    ys = jnp.array([1.0, 2.0, 2.5])
    posterior = inference.state_posterior(growth, ys, {"rate": d.Normal(0.0, 1.0)})
    assert posterior.names == ("rate", "states")
    logs, rate = np.array([0.1, 0.4, 1.2]), 0.3
    # On the logarithms of states the density is that of normal ones.
    expected = (
        stats.norm.logpdf(rate)
        + stats.norm.logpdf(logs[0])
        + stats.norm.logpdf(logs[1:], logs[:-1] + rate, 0.5).sum()
        + stats.norm.logpdf(ys, np.exp(logs), 1).sum()
    )
    position = {"rate": jnp.float32(rate), "states": jnp.asarray(logs, jnp.float32)}
    value, gradient = jax.jit(jax.value_and_grad(posterior.log_density))(position)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(posterior.constrain)(position)["states"], np.exp(logs), rtol=1e-5)
    np.testing.assert_allclose(gradient["rate"], -rate + ((logs[1:] - logs[:-1] - rate) / 0.25).sum(), rtol=1e-4)


def test_guides_arrive_at_the_smoother_and_at_mean_fields_closed_form(x64):
    posterior = inference.state_posterior(linear(jnp.float64), jnp.asarray(YS))
    mean, precision = exact(linear(jnp.float64), YS)
    smoothed = inference.kalman.smooth(linear(jnp.float64), jnp.asarray(YS))
    np.testing.assert_allclose(smoothed.mean.ravel(), mean, atol=1e-8)
    start = {"states": jnp.zeros((TIMES, 2))}
    found = vi.fit(posterior, jax.random.key(0), vi.markov(), initial=start)
    assert found.converged
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(found.guide.distribution.bijector.loc.ravel(), mean, atol=1e-3)
    np.testing.assert_allclose(covariance_of(found.guide), covariance, atol=1e-3)
    # At the optimum the bound is the log evidence.
    evidence = inference.kalman.log_likelihood(linear(jnp.float64), jnp.asarray(YS))
    np.testing.assert_allclose(found.elbo, evidence, atol=1e-3)

    independent = vi.fit(posterior, jax.random.key(0), vi.mean_field(), initial=start, draws=32)
    law = independent.guide.distribution.bijector
    # Noise does not vanish here: scales to 1 percent, means to a hundredth of a standard deviation or so.
    np.testing.assert_allclose(np.exp(-2 * law.log_scale), np.diag(precision), rtol=0.03)
    np.testing.assert_allclose(law.loc, mean, atol=0.03)


def test_a_markov_guide_has_the_law_of_its_definition(x64):
    guide = vi.markov().init(jax.random.key(0), {"states": jnp.zeros((4, 2))})
    leaves, structure = jax.tree.flatten(guide)
    rng = np.random.default_rng(0)
    guide = jax.tree.unflatten(structure, [leaf + 0.4 * rng.normal(size=leaf.shape) for leaf in leaves])
    law = stats.multivariate_normal(np.ravel(guide.distribution.bijector.loc), covariance_of(guide))
    draw = jax.jit(lambda guide, key: guide.sample_and_log_prob(key, (3, 2)))
    positions, log_prob = draw(guide, jax.random.key(1))
    assert positions["states"].shape == (3, 2, 4, 2)
    np.testing.assert_allclose(log_prob, law.logpdf(np.reshape(positions["states"], (3, 2, 8))), rtol=1e-9)
    np.testing.assert_allclose(jax.jit(lambda g, x: g.log_prob(x))(guide, positions), log_prob, rtol=1e-9)
    np.testing.assert_allclose(guide.entropy(), law.entropy(), rtol=1e-9)
    # A draw is the root of its covariance times noise: the map is affine, with this Jacobian.
    jacobian = jax.jit(jax.jacfwd(guide.distribution.bijector.forward))(jnp.zeros(8))
    np.testing.assert_allclose(jacobian @ jacobian.T, covariance_of(guide), atol=1e-12)
    one = vi.markov(0.5).init(jax.random.key(0), jnp.zeros(1))
    np.testing.assert_allclose(one.log_prob(jnp.ones(1)), stats.norm.logpdf(1, 0, 0.5), rtol=1e-6)


def test_parameters_beside_states_by_blocks():
    posterior = inference.state_posterior(growth, jnp.array([1.0, 2.0, 2.5]), {"rate": d.Normal(0.0, 1.0)})
    family = vi.blocks({"states": vi.markov()}, rest=vi.full_rank())
    found = vi.fit(posterior, jax.random.key(0), family, max_steps=50, initial=posterior.initial(jax.random.key(1)))
    assert np.isfinite(found.elbo)
    assert found.guide.sample(jax.random.key(2), 5)["states"].shape == (5, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: inference.state_posterior(jnp.ones(2), jnp.ones(3)), TypeError, "a StateSpaceModel or"),
        (lambda: inference.state_posterior(growth, jnp.ones(3)), TypeError, "priors="),
        (lambda: inference.state_posterior(WALK, jnp.float32(1.0)), ValueError, r"ys is of shape \(\)"),
        (lambda: inference.state_posterior(growth, jnp.ones(3), {"rate": 1.0}), TypeError, r"priors\['rate'\]"),
        (lambda: inference.state_posterior(growth, jnp.ones(3), {"ys": d.Normal(0.0, 1.0)}), ValueError, "'ys'"),
        (lambda: inference.state_posterior(WALK, jnp.ones(3), {"a": d.Normal(0.0, 1.0)}), TypeError, "a function"),
        (lambda: vi.fit(WALK, jax.random.key(0)), TypeError, "state_posterior"),
        (lambda: vi.elbo(linear(), vi.full_rank(), initial=jnp.zeros(2)), TypeError, "state_posterior"),
        (lambda: vi.markov().init(jax.random.key(0), {"a": jnp.zeros(2), "b": jnp.zeros(2)}), ValueError, "blocks"),
        (lambda: vi.markov().init(jax.random.key(0), jnp.zeros(())), ValueError, "one array"),
        (lambda: vi.markov(0.0), ValueError, "scale is 0"),
    ],
)
def test_bad_input_is_told_in_one_line(call, error, words):
    with pytest.raises(error, match=words) as told:
        call()
    assert "\n" not in str(told.value)


def test_models_that_have_no_density_of_states_are_told():
    chain = HiddenMarkov(jnp.ones(2) / 2, jnp.ones((2, 2)) / 2, d.Normal(jnp.arange(2.0), 1.0))
    assert hmm.log_likelihood(chain, jnp.ones(3)).shape == ()
    with pytest.raises(TypeError, match="hmm.smooth"):
        inference.state_posterior(chain, jnp.ones(3))
    with pytest.raises(models.ModelError, match="returns a StateSpaceModel"):
        inference.state_posterior(lambda p: p["a"], jnp.ones(3), {"a": d.Normal(0.0, 1.0)}).log_density(
            {"a": jnp.float32(0.0), "states": jnp.zeros(3)}
        )
