"""Switching linear-Gaussian models against the sum over all paths of regimes, in float64 NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian, SwitchingLinearGaussian
from tests.inference.kalman._dense import condition
from tests.inference.kalman._models import random

METHODS = ("gpb2", "imm")
INITIAL = np.array([0.6, 0.4])
TRANSITION = np.array([[0.9, 0.1], [0.3, 0.7]])


def make(times=6, gaps=True, dtype=np.float64, seed=0, regimes=2):
    """Two regimes that differ in everything, and a series with gaps."""
    rng = np.random.default_rng(seed)
    models = []
    for _ in range(regimes):
        entries = random(rng, n=2, m=2)
        models.append(LinearGaussian(**{name: np.asarray(array, dtype) for name, array in entries.items()}))
    ys = rng.normal(size=(times, 2)) * 2
    if gaps:
        ys[rng.uniform(size=ys.shape) < 0.2] = np.nan
        ys[times // 2] = np.nan
    initial = INITIAL if regimes == 2 else np.full(regimes, 1 / regimes)
    transition = TRANSITION if regimes == 2 else np.eye(regimes) * 0.7 + 0.3 / regimes
    return SwitchingLinearGaussian(initial, transition, models), ys.astype(dtype)


class Along:
    """The entries of a path of regimes, as the joint law of `_dense` reads them."""

    time_varying = (
        "dynamics",
        "dynamics_covariance",
        "dynamics_offset",
        "emission",
        "emission_covariance",
        "emission_offset",
    )

    def __init__(self, model, path):
        path = np.array(path)
        for name in self.time_varying:
            # Dynamics are of the regime entered.
            chosen = np.append(path[1:], path[-1:]) if name.startswith("dynamics") else path
            setattr(self, name, np.asarray(getattr(model.models, name))[chosen])
        for name in ("initial_mean", "initial_covariance", "initial_diffuse"):
            setattr(self, name, np.asarray(getattr(model.models, name))[path[0]])
        self.state_size = model.state_size


def enumerate_paths(model, ys, upto=None):
    """Log likelihood; probabilities of all paths (P,), the paths (P, T), and means and covariances (P, T, ...)."""
    times = len(ys)
    initial, transition = np.asarray(model.initial, float), np.asarray(model.transition, float)
    paths = np.array(list(itertools.product(range(model.regime_size), repeat=times)))
    logs, means, covariances = [], [], []
    with np.errstate(divide="ignore"):
        for path in paths:
            prior = np.log(initial[path[0]]) + np.log(transition[path[:-1], path[1:]]).sum()
            likelihood, mean, covariance = condition(Along(model, path), ys, upto)
            logs.append(prior + likelihood)
            means.append(mean)
            covariances.append(np.stack([covariance[t, :, t] for t in range(times)]))
    logs = np.array(logs)
    total = np.logaddexp.reduce(logs)
    return total, np.exp(logs - total), paths, np.array(means), np.array(covariances)


def marginals(model, ys, upto=None):
    """Log likelihood, probabilities (T, K), means (T, K, n) and covariances (T, K, n, n) of the states in each."""
    total, weights, paths, means, covariances = enumerate_paths(model, ys, upto)
    times, size = len(ys), model.regime_size
    probabilities = np.zeros((times, size))
    center = np.zeros((times, size, means.shape[2]))
    spread = np.zeros((*center.shape, means.shape[2]))
    for t, k in itertools.product(range(times), range(size)):
        share = weights * (paths[:, t] == k)
        probabilities[t, k] = share.sum()
        if share.sum() > 0:
            share = share / share.sum()
            center[t, k] = share @ means[:, t]
            gap = means[:, t] - center[t, k]
            spread[t, k] = np.einsum("p,pij->ij", share, covariances[:, t] + gap[:, :, None] * gap[:, None, :])
    return total, probabilities, center, spread


@pytest.mark.parametrize(("method", "times"), [("gpb2", 2), ("imm", 1)])
def test_short_series_are_exact(method, times, x64):
    model, ys = make(times, gaps=False)
    ys[-1, 0] = np.nan
    found = kalman.switching_filter(model, ys, method=method)
    for t in range(times):
        total, probabilities, center, spread = marginals(model, ys[: t + 1])
        np.testing.assert_allclose(found.log_likelihoods[t], total, rtol=1e-10)
        np.testing.assert_allclose(found.probabilities[t], probabilities[t], rtol=1e-9)
        np.testing.assert_allclose(found.regime_mean[t], center[t], rtol=1e-8)
        factor = np.asarray(found.regime_factor[t])
        np.testing.assert_allclose(factor @ np.swapaxes(factor, 1, 2), spread[t], rtol=1e-7, atol=1e-10)


def test_three_regimes_of_two_times(x64):
    model, ys = make(2, gaps=False, regimes=3)
    total, probabilities, center, _ = marginals(model, ys)
    found = kalman.switching_filter(model, ys)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-10)
    np.testing.assert_allclose(found.probabilities[1], probabilities[1], rtol=1e-9)
    np.testing.assert_allclose(found.mean[1], probabilities[1] @ center[1], rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "size"), [("gpb2", 2), ("imm", 2), *(pytest.param(m, 1, marks=pytest.mark.slow) for m in METHODS)]
)
def test_identical_regimes_are_the_kalman_filter(method, size, x64):
    model, ys = make()
    single = jax.tree.map(lambda leaf: leaf[0], model.models)
    transition = TRANSITION if size == 2 else np.ones((1, 1))
    same = SwitchingLinearGaussian(np.ones(size) / size, transition, [single] * size)
    expected, found = kalman.filter(single, ys), kalman.switching_filter(same, ys, method=method)
    np.testing.assert_allclose(found.log_likelihoods, expected.log_likelihoods, rtol=1e-10)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-8, atol=1e-10)
    expected, found = kalman.smooth(single, ys), kalman.switching_smooth(same, ys, method=method)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_states_that_are_not_handed_on_are_exact(method, x64):
    """Each state is drawn anew: then regimes are a hidden Markov model, and nothing is approximated."""
    model, ys = make()
    regimes = [jax.tree.map(lambda leaf, k=k: leaf[k], model.models) for k in range(2)]
    regimes = [dataclasses.replace(regime, dynamics=np.zeros((2, 2))) for regime in regimes]
    model = dataclasses.replace(model, models=regimes)
    total, probabilities, center, spread = marginals(model, ys)
    found = kalman.switching_smooth(model, ys, method=method)
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-10)
    np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-8)
    np.testing.assert_allclose(found.regime_mean, center, rtol=1e-7, atol=1e-9)
    factor = np.asarray(found.regime_factor)
    np.testing.assert_allclose(factor @ np.swapaxes(factor, 2, 3), spread, rtol=1e-6, atol=1e-9)


def test_how_far_from_exact(x64):
    """Over 8 models of six times and two regimes. These are errors of the methods, not of rounding."""
    errors = {method: np.zeros((8, 3)) for method in METHODS}
    for seed in range(8):
        model, ys = make(seed=seed)
        total, smoothed, _, _ = marginals(model, ys)
        exact = np.stack([marginals(model, ys, t + 1)[1][t] for t in range(len(ys))])
        for method in METHODS:
            filtered = kalman.switching_filter(model, ys, method=method)
            found = kalman.switching_smooth(model, ys, method=method)
            errors[method][seed] = (
                abs(filtered.log_likelihood - total),
                np.max(np.abs(filtered.probabilities - exact)),
                np.max(np.abs(found.probabilities - smoothed)),
            )
    # Of the log likelihood, of filtered and of smoothed probabilities: one half more than was found.
    bounds = {"gpb2": (0.05, 0.007, 0.37), "imm": (0.8, 0.17, 0.45)}
    for method, found in errors.items():
        assert (found.max(0) < bounds[method]).all()


def test_float32_is_as_good():
    model, ys = make(dtype=np.float32)
    found = kalman.switching_smooth(model, ys)
    assert found.mean.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model)
        expected = kalman.switching_smooth(wide, ys.astype(float))
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4, atol=1e-4)


def test_a_batch_is_a_vmap():
    model, ys = make(dtype=np.float32)
    batch = np.stack([ys, ys[::-1]])
    found = jax.jit(jax.vmap(lambda ys: kalman.switching_smooth(model, ys)))(batch)
    for i, one in enumerate(batch):
        expected = kalman.switching_smooth(model, one)
        np.testing.assert_allclose(found.mean[i], expected.mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.covariance[i], expected.covariance, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.log_likelihood[i], expected.log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(found.probabilities[i], expected.probabilities, atol=1e-5)


@pytest.mark.slow
def test_impossible_moves(x64):
    """A regime that is never left, another that never begins; gradients are finite."""
    model, ys = make()
    model = dataclasses.replace(model, initial=jnp.array([1.0, 0.0]), transition=jnp.array([[0.8, 0.2], [0.0, 1.0]]))
    total = marginals(model, ys)[0]
    found = kalman.switching_smooth(model, ys)
    assert found.probabilities[0, 1] == 0
    assert abs(found.log_likelihood - total) < 0.05 * abs(total)
    slopes = jax.grad(lambda model: kalman.switching_filter(model, ys).log_likelihood)(model)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))
    assert np.isfinite(np.asarray(found.mean)).all()


def test_no_time_all_missing_and_draws():
    model, ys = make(dtype=np.float32)
    assert kalman.switching_filter(model, ys[:0]).log_likelihood == 0
    assert kalman.switching_smooth(model, ys[:0]).mean.shape == (0, 2)
    found = kalman.switching_filter(model, np.full_like(ys, np.nan))
    assert found.log_likelihood == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(found.probabilities[1], INITIAL @ TRANSITION, rtol=1e-5)
    regimes, states, drawn = model.sample(jax.random.key(0), 50)
    assert regimes.shape == (50,)
    assert states.shape == drawn.shape == (50, 2)


def test_draws_have_the_law_of_their_path():
    """4,000 series of three times: means of what is observed within 5 standard errors (false alarms: 1 in 100,000)."""
    model, _ = make(dtype=np.float32)
    regimes, _, ys = jax.vmap(lambda key: model.sample(key, 3))(jax.random.split(jax.random.key(0), 4000))
    expected = INITIAL @ TRANSITION @ TRANSITION
    assert abs(np.mean(np.asarray(regimes[:, 2]) == 1) - expected[1]) < 5 * np.sqrt(expected.prod() / 4000)
    nothing = np.full((3, 2), np.nan)
    _, probabilities, center, _ = marginals(jax.tree.map(np.asarray, model), nothing)
    h, d = (np.asarray(getattr(model.models, name), float) for name in ("emission", "emission_offset"))
    mean = sum(probabilities[2, k] * (h[k] @ center[2, k] + d[k]) for k in range(2))
    assert np.max(np.abs(ys[:, 2].mean(0) - mean) / (ys[:, 2].std(0) / np.sqrt(4000))) < 5


def test_gibbs_draws_from_the_exact_law():
    """8,000 steps: probabilities and means within 5 standard errors by 80 batches (14 numbers; false alarms: 1 in
    50,000)."""
    model, ys = make(4, dtype=np.float32)
    kernel = kalman.switching_gibbs(model, ys)
    start = kernel.init({"regimes": np.zeros(4, int), "states": np.zeros((4, 2), np.float32)}, jax.random.key(0))

    def body(state, key):
        state, info = kernel.step(key, state)
        return state, (state.position["regimes"] == 1, state.position["states"], info.log_density)

    keys = jax.random.split(jax.random.key(1), 8_000)
    regimes, states, densities = jax.jit(lambda keys: jax.lax.scan(body, start, keys)[1])(keys)
    assert np.isfinite(densities).all()
    _, probabilities, center, _ = marginals(jax.tree.map(np.asarray, model), ys.astype(float))
    mean = np.einsum("tk,tkn->tn", probabilities, center)
    for draws, expected in ((regimes, probabilities[:, 1]), (states, mean)):
        batches = np.asarray(draws, float).reshape(80, 100, -1).mean(1)
        errors = batches.std(0, ddof=1) / np.sqrt(80)
        assert np.max(np.abs(batches.mean(0) - expected.ravel()) / errors) < 5
        assert errors.max() < 0.2


def normal(residual, covariance):
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (log_det + residual @ np.linalg.solve(covariance, residual))


@pytest.mark.slow
def test_regimes_given_states_are_scored_by_all_that_is_known(x64):
    """The density of the states drawn and the observations that a step reports, by a sum over all paths."""
    model, ys = make(4)
    kernel = kalman.switching_gibbs(model, ys)
    start = kernel.init({"regimes": np.zeros(4, int), "states": np.zeros((4, 2))}, jax.random.key(0))
    state, info = kernel.step(jax.random.key(1), start)
    x, e = np.asarray(state.position["states"]), {k: np.asarray(v) for k, v in vars(model.models).items()}
    totals = []
    for path in itertools.product(range(2), repeat=4):
        total = np.log(INITIAL[path[0]]) + normal(x[0] - e["initial_mean"][path[0]], e["initial_covariance"][path[0]])
        for t, k in enumerate(path):
            if t:
                total += np.log(TRANSITION[path[t - 1], k])
                moved = e["dynamics"][k] @ x[t - 1] + e["dynamics_offset"][k]
                total += normal(x[t] - moved, e["dynamics_covariance"][k])
            seen = ~np.isnan(ys[t])
            residual = ys[t] - e["emission"][k] @ x[t] - e["emission_offset"][k]
            total += normal(residual[seen], e["emission_covariance"][k][np.ix_(seen, seen)])
        totals.append(total)
    np.testing.assert_allclose(info.log_density, np.logaddexp.reduce(totals), rtol=1e-9)


def test_errors():
    model, ys = make(dtype=np.float32)
    single = jax.tree.map(lambda leaf: leaf[0], model.models)
    for change, message in (
        (dict(initial=np.array([0.5, 0.6])), "sum to 1"),
        (dict(transition=np.eye(3)), "shape"),
        (dict(models=[single, LinearGaussian(*(np.ones((1, 1)[: 1 + (i > 0)]) for i in range(6)))]), "same shapes"),
        (dict(models=single), "a single one"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(model, **change)
    with pytest.raises(TypeError, match="LinearGaussian models"):
        dataclasses.replace(model, models=[1, 2])
    with pytest.raises(ValueError, match="one of"):
        kalman.switching_filter(model, ys, method="imm2")
    for verb in (kalman.switching_filter, kalman.switching_smooth, kalman.switching_gibbs):
        with pytest.raises(TypeError, match="SwitchingLinearGaussian"):
            verb(single, ys)
    with pytest.raises(ValueError, match="'regimes' and 'states'"):
        kalman.switching_gibbs(model, ys).init({"regimes": np.zeros(6, int)}, jax.random.key(0))
