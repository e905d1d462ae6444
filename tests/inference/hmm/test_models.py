"""What states emit, what is missing, streams and forecasts, durations, factorial models, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob.distributions import Categorical, Independent, MultivariateNormal, Normal, Poisson
from jaxprob.inference import hmm
from jaxprob.models.state_space import HiddenMarkov, LinearGaussian, explicit_durations, factorial
from tests.inference.hmm import _enumeration as enumeration
from tests.inference.hmm.test_exact import make

INITIAL = np.array([0.6, 0.4])
TRANSITION = np.array([[0.9, 0.1], [0.3, 0.7]])


def regression(weights, inputs, previous):
    """Poisson counts, with log rates linear in inputs."""
    return Poisson(log_rate=weights @ inputs)


def autoregression(coefficients, inputs, previous):
    """Normal, with means linear in the two observations before."""
    return Normal(coefficients @ previous, 1.0)


def total(densities):
    return np.log(enumeration.weights(INITIAL, TRANSITION, densities)[1].sum())


def test_independent_entries_are_missing_one_by_one(x64):
    locs, ys = np.array([[0.0, 1.0, 2.0], [-1.0, 0.5, 0.0]]), np.random.default_rng(0).normal(size=(5, 3))
    ys[1, 2] = ys[3, 0] = ys[3, 1] = np.nan
    model = HiddenMarkov(INITIAL, TRANSITION, Normal(jnp.asarray(locs), 1.0))
    single = np.where(np.isnan(ys)[:, None], 1, scipy.stats.norm.pdf(np.nan_to_num(ys)[:, None], locs, 1))
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), total(single.prod(2)), rtol=1e-12)
    # Taken as one event an observation is seen or missing as a whole.
    event = HiddenMarkov(INITIAL, TRANSITION, Independent(Normal(jnp.asarray(locs), 1.0), 1))
    whole = np.where(np.isnan(ys).any(1)[:, None], 1, single.prod(2))
    np.testing.assert_allclose(hmm.log_likelihood(event, ys), total(whole), rtol=1e-12)


def test_normal_vectors_are_missing_entry_by_entry(x64):
    rng = np.random.default_rng(1)
    locs, roots = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 3))
    covariances, ys = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(3), rng.normal(size=(5, 3))
    ys[1, 2] = ys[3, 0] = ys[3, 1] = np.nan
    ys[4] = np.nan
    model = HiddenMarkov(INITIAL, TRANSITION, MultivariateNormal(jnp.asarray(locs), jnp.asarray(covariances)))
    densities = np.ones((5, 2))
    for t, k in np.ndindex(5, 2):
        seen = ~np.isnan(ys[t])
        if seen.any():
            law = scipy.stats.multivariate_normal(locs[k, seen], covariances[k][np.ix_(seen, seen)])
            densities[t, k] = law.pdf(ys[t, seen])
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), total(densities), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(hmm.log_likelihood)(model, ys), total(densities), rtol=1e-12)
    gradient = jax.grad(lambda model: hmm.log_likelihood(model, ys))(model)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_categories_and_a_mask(x64):
    table, ys = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]]), np.array([0, 2, 1, 1, 0])
    model = HiddenMarkov(INITIAL, TRANSITION, Categorical(jnp.asarray(table)))
    densities = table[:, ys].T.copy()
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), total(densities), rtol=1e-12)
    densities[2:4] = 1
    missing = np.array([False, False, True, True, False])
    np.testing.assert_allclose(hmm.log_likelihood(model, ys, missing=missing), total(densities), rtol=1e-12)


def test_emissions_driven_by_inputs(x64):
    rng = np.random.default_rng(2)
    weights, inputs = rng.normal(size=(2, 3)), rng.normal(size=(5, 3))
    ys = rng.poisson(2, 5)
    model = HiddenMarkov(
        INITIAL, TRANSITION, jax.tree_util.Partial(regression, jnp.asarray(weights)), inputs=jnp.asarray(inputs)
    )
    expected = total(scipy.stats.poisson.pmf(ys[:, None], np.exp(inputs @ weights.T)))
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), expected, rtol=1e-12)
    gradient = jax.grad(lambda model: hmm.log_likelihood(model, ys))(model).emission.args[0]
    assert gradient.shape == (2, 3)
    assert (gradient != 0).all()


@pytest.mark.parametrize("known", [True, False])
def test_autoregressive_emissions(known, x64):
    """What follows a missing observation is not scored, nor what has no history."""
    rng = np.random.default_rng(3)
    coefficients, ys = np.array([[0.2, 0.7], [-0.5, 0.1]]), rng.normal(size=7)
    ys[4] = np.nan
    history = np.array([0.3, -0.2]) if known else np.full(2, np.nan)
    emission = jax.tree_util.Partial(autoregression, jnp.asarray(coefficients))
    model = HiddenMarkov(INITIAL, TRANSITION, emission, history=jnp.asarray(history))
    series, densities = np.append(history, ys), np.ones((7, 2))
    for t in range(7):
        if not np.isnan(series[t : t + 3]).any():
            densities[t] = scipy.stats.norm.pdf(ys[t], coefficients @ series[t : t + 2], 1)
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), total(densities), rtol=1e-12)
    found = hmm.filter(model, ys)
    state = hmm.init(model)
    for t in range(7):
        state = hmm.step(model, state, ys[t])
        np.testing.assert_allclose(state.probabilities, found.probabilities[t], atol=1e-12)
    np.testing.assert_allclose(state.log_likelihood, found.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("varying", [False, True])
def test_a_stream_is_the_filter(varying):
    model, ys, _ = make(varying=varying, gap=True, dtype=np.float32)
    found, state = hmm.filter(model, ys), hmm.init(model)
    for t, y in enumerate(ys):
        state = hmm.step(model, state, y)
        np.testing.assert_allclose(state.probabilities, found.probabilities[t], atol=1e-6)
        np.testing.assert_allclose(state.log_likelihood, found.log_likelihoods[t], rtol=1e-5)
    assert state.count == 6


def test_forecasts(x64):
    model, ys, (_, transition, _) = make()
    found = hmm.filter(model, ys)
    ahead = hmm.forecast(model, found, 3)
    laws = [found.probabilities[-1] @ np.linalg.matrix_power(transition, step) for step in (1, 2, 3)]
    np.testing.assert_allclose(ahead.probabilities, laws, atol=1e-12)
    locs, scales = model.emission.loc, model.emission.scale
    for step, law in enumerate(laws):
        np.testing.assert_allclose(ahead.mean[step], law @ locs, rtol=1e-12)
        variance = law @ (scales**2 + locs**2) - (law @ locs) ** 2
        np.testing.assert_allclose(ahead.variance[step], variance, rtol=1e-12)
    start = hmm.forecast(model, hmm.filter(model, ys[:0]), 2).probabilities
    np.testing.assert_allclose(start, [model.initial, model.initial @ transition], atol=1e-12)
    np.testing.assert_allclose(hmm.forecast(model, hmm.init(model), 2).probabilities, start, atol=1e-12)
    assert hmm.forecast(model, found, 0).log_probabilities.shape == (0, 4)


def test_draws_from_a_model_have_its_law():
    """States of two neighbouring times and what they emit, by z-scores: false alarms below 1 in 1,000."""
    model = HiddenMarkov([0.7, 0.3], [[0.8, 0.2], [0.4, 0.6]], Normal(jnp.array([-1.0, 2.0]), 0.5))
    keys = jax.random.split(jax.random.key(0), 20_000)
    states, values = jax.vmap(lambda key: model.sample(key, 2))(keys)
    joint = np.array([0.7, 0.3])[:, None] * np.array([[0.8, 0.2], [0.4, 0.6]])
    counts = np.histogram2d(*np.asarray(states).T, bins=2)[0]
    assert (np.abs(counts - 20_000 * joint) < 4 * np.sqrt(20_000 * joint * (1 - joint))).all()
    scores = (np.asarray(values) - np.array([-1.0, 2.0])[states]) / 0.5
    assert abs(scores.mean()) < 4 / np.sqrt(40_000)
    assert abs(scores.var() - 1) < 4 * np.sqrt(2 / 40_000)


def test_explicit_durations(x64):
    """Against the sum over all ways to cut the series into segments; the last one may go on beyond its end."""
    rng = np.random.default_rng(4)
    transition = np.array([[0.0, 0.3, 0.7], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0]])
    initial, durations = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(4), 3)
    durations[1] = [0, 0.5, 0.5, 0]
    ys, locs = rng.normal(size=7), np.array([-1.0, 0.0, 2.0])
    densities = scipy.stats.norm.pdf(ys[:, None], locs, 1)

    def rest(start, law):
        """The density of what follows, where a segment begins at `start`."""
        if start == 7:
            return 1.0
        found = 0.0
        for k in range(3):
            for length in range(1, 5):
                weight = law[k] * durations[k, length - 1] * densities[start : start + length, k].prod()
                if weight:
                    found += weight * (rest(start + length, transition[k]) if start + length < 7 else 1.0)
        return found

    base = HiddenMarkov(initial, transition, Normal(jnp.asarray(locs), 1.0))
    model = explicit_durations(base, durations)
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), np.log(rest(0, initial)), rtol=1e-12)
    assert model.state_size == 12
    # Geometric durations, cut off far away, are those of the ordinary model.
    stay = np.array([0.5, 0.4, 0.3])
    geometric = stay[:, None] ** np.arange(60) * (1 - stay)[:, None]
    geometric /= geometric.sum(1, keepdims=True)
    plain = HiddenMarkov(initial, np.diag(stay) + (1 - stay)[:, None] * transition, base.emission)
    found = hmm.smooth(explicit_durations(base, geometric), ys).probabilities.reshape(7, 3, 60).sum(2)
    np.testing.assert_allclose(found, hmm.smooth(plain, ys).probabilities, atol=1e-12)


def test_durations_from_a_distribution():
    base = HiddenMarkov([0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], Normal(jnp.array([0.0, 1.0]), 1.0))
    model = explicit_durations(base, Poisson(jnp.array([1.0, 3.0])), longest=5)
    mass = scipy.stats.poisson.pmf(np.arange(1, 6), np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(model.initial, (0.5 * mass / mass.sum(1, keepdims=True)).ravel(), rtol=1e-5)


def test_a_factorial_model(x64):
    """Against enumeration of the paths of both chains."""
    rng = np.random.default_rng(5)
    chains = [(rng.dirichlet(np.ones(k)), rng.dirichlet(np.ones(k), k)) for k in (2, 3)]
    ys, parts = rng.normal(size=4), [rng.normal(size=k) for k in (2, 3)]
    tables = [jnp.asarray(part) for part in parts]
    model = factorial(chains, lambda states: Normal(tables[0][states[:, 0]] + tables[1][states[:, 1]], 1.0))
    expected = 0.0
    for one in enumeration.paths(2, 4):
        for other in enumeration.paths(3, 4):
            weight = scipy.stats.norm.pdf(ys, parts[0][one] + parts[1][other], 1).prod()
            for path, (initial, transition) in ((one, chains[0]), (other, chains[1])):
                weight = weight * initial[path[0]] * transition[path[:-1], path[1:]].prod()
            expected += weight
    np.testing.assert_allclose(hmm.log_likelihood(model, ys), np.log(expected), rtol=1e-12)


def test_errors_come_before_anything_compiles():
    emission = Normal(jnp.array([0.0, 1.0]), 1.0)
    good = HiddenMarkov(INITIAL, TRANSITION, emission)
    walk = LinearGaussian(*(jnp.eye(1)[0], *(jnp.eye(1),) * 5))
    ys = np.zeros(3, np.float32)
    cases = [
        (lambda: HiddenMarkov([0.5, 0.6], TRANSITION, emission), "initial is summing to 1.1"),
        (lambda: HiddenMarkov([1.5, -0.5], TRANSITION, emission), r"initial is -0.5 at \(1,\)"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION.T, emission), "sum to 1 in each row"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION[None], emission), "Declare time_varying"),
        (lambda: HiddenMarkov(INITIAL, np.eye(3), emission), r"expected shape \(2, 2\)"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION, emission, time_varying=("emission",)), "function of inputs"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION, Normal(jnp.zeros(3), 1.0)), "leads with 2"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION, 3), "a Distribution, or a function"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION, lambda inputs, previous: 1.0), "a function that returns"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION, emission, inputs=ys), "which reads none"),
        (lambda: HiddenMarkov(INITIAL, TRANSITION, emission, labels=[0, 2]), "0 to 1"),
        (lambda: hmm.filter(walk, ys), "expected a HiddenMarkov"),
        (lambda: hmm.filter(good, ys[:, None]), r"expected shape \(time,\)"),
        (lambda: hmm.filter(good, ys + np.inf), "infinite somewhere"),
        (lambda: hmm.filter(good, ys, missing=ys), "booleans of shape"),
        (lambda: hmm.filter(good, ys, method="steady"), "one of"),
        (lambda: hmm.smooth(good, ys, lag=-1), "at least 0"),
        (lambda: hmm.filter(make(varying=True, dtype=np.float32)[0], ys), "as many times as the model spans"),
        (lambda: hmm.forecast(make(varying=True, dtype=np.float32)[0], hmm.filter(good, ys), 2), "varies in time"),
        (lambda: explicit_durations(good, np.ones((3, 2)) / 2), r"shape \(2, longest\)"),
        (lambda: factorial([], lambda states: emission), "at least one pair"),
    ]
    for call, text in cases:
        with pytest.raises((ValueError, TypeError), match=text) as found:
            call()
        assert "\n" not in str(found.value)
