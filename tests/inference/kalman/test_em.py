"""EM of linear-Gaussian models: one step is what the joint law says, and the likelihood never falls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian
from tests.inference.kalman._dense import joint
from tests.inference.kalman._models import make
from tests.inference.kalman.test_models import NILE

NAMES = (
    "initial_mean",
    "initial_covariance",
    "dynamics",
    "dynamics_offset",
    "dynamics_covariance",
    "emission",
    "emission_offset",
    "emission_covariance",
)


def moments(model, ys):
    """Mean and covariance, given what was observed, of all states and all that could have been observed."""
    times, (n, m) = len(ys), (model.state_size, model.observation_size)
    mean, covariance, emission, offset, noise = joint(model, times)
    mean = np.concatenate([mean, emission @ mean + offset])
    cross = covariance @ emission.T
    covariance = np.block([[covariance, cross], [cross.T, emission @ cross + noise]])
    seen = np.concatenate([np.zeros(times * n, bool), ~np.isnan(ys).ravel()])
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen]).T
    mean = mean + gain @ (ys.ravel()[~np.isnan(ys).ravel()] - mean[seen])
    covariance = covariance - gain @ covariance[seen]
    second = covariance + np.outer(mean, mean)
    size = times * n

    def pick(kind, time):
        start, width = (0, n) if kind == "x" else (size, m)
        return slice(start + time * width, start + (time + 1) * width)

    return mean, second, pick


def regression(xx, xy, yy, old, offset, learn):
    """The matrix and offset that minimise, and the second moment of what is left; moments of the regressors (x, 1)."""
    n = xx.shape[0] - 1
    full = np.concatenate([old, offset[:, None]], 1)
    free = np.array([learn[0]] * n + [learn[1]])
    if free.any():
        target = xy - xx @ full.T * 1.0
        change = np.linalg.solve(xx[np.ix_(free, free)], target[free])
        full[:, free] = full[:, free] + change.T
    left = yy - full @ xy - xy.T @ full.T + full @ xx @ full.T
    return full[:, :n], full[:, n], left


def oracle(model, series, learn):
    """One step of EM by sums of second moments, in float64 NumPy; series that end are cut there."""
    e = {name: np.array(getattr(model, name), np.float64) for name in NAMES}
    n, m = model.state_size, model.observation_size
    xx, xy, yy, moves = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n)), np.zeros((n, n)), 0
    sides = [[np.zeros((n + 1, n + 1)), np.zeros((n + 1, m)), np.zeros((m, m)), 0] for _ in range(m)]
    firsts, start = [], np.zeros((n, n))
    for ys in series:
        ys = ys[: np.flatnonzero((~np.isnan(ys)).any(1))[-1] + 1]
        mean, second, pick = moments(model, ys)
        firsts.append((mean[pick("x", 0)], second[pick("x", 0), pick("x", 0)]))
        for t in range(len(ys)):
            one = pick("x", t)
            extended = np.block([[second[one, one], mean[one][:, None]], [mean[one][None], np.ones((1, 1))]])
            if t + 1 < len(ys):
                after = pick("x", t + 1)
                xx += extended
                xy += np.concatenate([second[one, after], mean[after][None]])
                yy += second[after, after]
                moves += 1
            there = ~np.isnan(ys[t])
            for i, side in enumerate(sides):
                if there[i] if e["emission_covariance"].ndim == 1 else there.any():
                    y = pick("y", t)
                    side[0] += extended
                    side[1] += np.concatenate([second[one, y], mean[y][None]])
                    side[2] += second[y, y]
                    side[3] += 1
    result = dict(e)
    if "initial_mean" in learn:
        result["initial_mean"] = np.mean([first for first, _ in firsts], 0)
    center = result["initial_mean"]
    for first, square in firsts:
        start += square - np.outer(first, center) - np.outer(center, first) + np.outer(center, center)
    found = {"initial_covariance": start / len(series)}
    chosen = ("dynamics" in learn, "dynamics_offset" in learn)
    found["dynamics"], found["dynamics_offset"], left = regression(
        xx, xy, yy, e["dynamics"], e["dynamics_offset"], chosen
    )
    found["dynamics_covariance"] = left / max(moves, 1)
    chosen = ("emission" in learn, "emission_offset" in learn)
    rows = [regression(*side[:3], e["emission"], e["emission_offset"], chosen) for side in sides]
    found["emission"] = np.stack([row[0][i] for i, row in enumerate(rows)])
    found["emission_offset"] = np.stack([row[1][i] for i, row in enumerate(rows)])
    left = [row[2] / side[3] for row, side in zip(rows, sides, strict=True)]
    dense = e["emission_covariance"].ndim == 2
    found["emission_covariance"] = left[0] if dense else np.array([left[i][i, i] for i in range(m)])
    return {**result, **{name: found[name] for name in learn if name in found}}


def agree(model, series, learn, tolerance=1e-8, **options):
    ys = series[0] if len(series) == 1 else np.stack(series)
    found, total = kalman.em_step(model, ys, learn=None if learn is NAMES else learn, **options)
    expected = oracle(model, series, learn)
    for name in NAMES:
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=tolerance, atol=tolerance, err_msg=name)
    np.testing.assert_allclose(total, sum(kalman.log_likelihood(model, ys) for ys in series), rtol=1e-10)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["random", "independent_noise", pytest.param("correlated_noise", marks=SLOW)])
def test_one_step_is_that_of_the_joint_law(name, x64):
    """With missing numbers and times, for dense noise and independent noise."""
    model, ys = make(name, times=14, gaps=True)
    agree(model, [ys], NAMES)


@pytest.mark.parametrize(
    "learn",
    [
        ("dynamics_offset", "dynamics_covariance", "emission_offset"),
        pytest.param(("dynamics", "emission_covariance"), marks=SLOW),
        pytest.param(("initial_covariance", "emission"), marks=SLOW),
    ],
)
def test_one_step_of_some_entries(learn, x64):
    model, ys = make("random", times=14, gaps=True)
    agree(model, [ys], learn)


@pytest.mark.parametrize("name", ["random", pytest.param("independent_noise", marks=SLOW)])
def test_several_series_of_several_lengths(name, x64):
    model, ys = make(name, times=14, gaps=True)
    other = make(name, seed=1, times=14)[1][:, : ys.shape[1]].copy()
    other[9:] = np.nan
    agree(model, [ys, other, ys[::-1] * 0.5], NAMES, batched=True)


def level(dtype, **changes):
    entries = dict(
        initial_mean=np.zeros(1),
        initial_covariance=np.zeros((1, 1)),
        dynamics=np.eye(1),
        dynamics_covariance=np.array([[1000.0]]),
        emission=np.eye(1),
        emission_covariance=np.array([10000.0]),
        initial_diffuse=np.eye(1),
    )
    return LinearGaussian(**{name: np.asarray(array, dtype) for name, array in {**entries, **changes}.items()})


def cases():
    noises = ("dynamics_covariance", "emission_covariance")
    return {
        "everything": (*make("random", times=14, gaps=True), None),
        "dynamics": (*make("random", times=14, gaps=True), NAMES[2:5]),
        "independent": (*make("independent_noise", times=14, gaps=True), None),
        "covariances": (*make("correlated_noise", times=14, gaps=True), noises),
        "rank one": (*make("constant_velocity", times=14, gaps=True), noises),
        "no noise": (*make("autoregression", times=14), ("dynamics", "dynamics_covariance")),
        "regression": (*make("static_parameter", times=14, gaps=True), None),
        "diffuse": (level(np.float64), np.where(np.arange(100) % 7 == 3, np.nan, NILE.astype(float))[:14], None),
    }


FAST = ("everything", "independent", "rank one", "diffuse")


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=SLOW) for name in cases()])
def test_the_likelihood_never_falls(name, x64):
    model, ys, learn = cases()[name]
    found = kalman.fit(model, ys, steps=30, learn=learn)
    gains = np.diff(found.log_likelihoods)
    assert (gains > -1e-9 * np.maximum(1, np.abs(found.log_likelihoods[1:]))).all()
    assert gains[0] > 1e-3
    np.testing.assert_allclose(found.log_likelihoods[-1], kalman.log_likelihood(found.model, ys), rtol=1e-10)
    if name == "rank one":
        # What has no noise keeps none.
        assert abs(np.linalg.eigvalsh(found.model.dynamics_covariance)[0]) < 1e-12
    if name == "no noise":
        np.testing.assert_allclose(found.model.dynamics[1], [1, 0], atol=1e-9)


def test_the_flow_of_the_nile(x64):
    """The published maximum, of a level of which nothing is known at the start; and the gradient vanishes there."""
    found = kalman.fit(level(np.float64), NILE.astype(float), steps=1500, tolerance=1e-8, learn=CHANGES)
    assert found.converged
    variances = jnp.array([found.model.emission_covariance[0], found.model.dynamics_covariance[0, 0]])
    np.testing.assert_allclose(variances, [15099, 1469.1], rtol=2e-4)

    def likelihood(logs):
        moved = dict(emission_covariance=jnp.exp(logs[:1]), dynamics_covariance=jnp.diag(jnp.exp(logs[1:])))
        return kalman.log_likelihood(dataclasses.replace(found.model, **moved), NILE.astype(float))

    assert np.max(np.abs(jax.grad(likelihood)(jnp.log(variances)))) < 1e-3


CHANGES = ("dynamics_covariance", "emission_covariance")


@pytest.mark.slow
def test_parameters_are_recovered(x64):
    """60 series of 40 times; z-scores by the information of the scores below 4 (false alarms: 1 in 4,000)."""
    truth = level(
        np.float64,
        initial_covariance=np.eye(1),
        initial_diffuse=np.zeros((1, 0)),
        dynamics=[[0.8]],
        dynamics_covariance=[[0.5]],
        emission_covariance=[0.3],
    )
    keys = jax.random.split(jax.random.key(0), 60)
    ys = jax.vmap(lambda key: kalman.simulate(key, truth, 40)[1])(keys)
    names = ("dynamics", *CHANGES, "emission_offset")
    found = kalman.fit(truth, ys, steps=200, learn=names, batched=True, tolerance=1e-6)
    assert found.converged

    def rebuilt(theta):
        entries = dict(zip(names, jnp.split(theta, 4), strict=True))
        shaped = {name: entry.reshape(getattr(truth, name).shape) for name, entry in entries.items()}
        return dataclasses.replace(truth, **shaped)

    theta, true = (jnp.stack([jnp.ravel(getattr(m, name))[0] for name in names]) for m in (found.model, truth))
    one = jax.grad(lambda theta, ys: kalman.log_likelihood(rebuilt(theta), ys))
    scores = np.asarray(jax.vmap(one, (None, 0))(theta, ys))
    assert np.max(np.abs(scores.sum(0))) < 0.05 * np.sqrt(len(ys))  # a maximum
    errors = np.sqrt(np.diag(np.linalg.inv(scores.T @ scores)))
    assert np.max(np.abs(theta - true) / errors) < 4
    assert np.max(errors) < 0.1


@pytest.mark.slow
def test_float32_is_as_good():
    """In units that differ by six orders of magnitude, against float64."""
    model, ys = make("random", times=14, gaps=True, dtype=np.float32)
    scale = np.array([1e-3, 1.0, 1e3], np.float32)
    moved = LinearGaussian(
        **{
            **{name: np.asarray(getattr(model, name)) for name in NAMES},
            "initial_mean": np.asarray(model.initial_mean) * scale,
            "initial_covariance": np.asarray(model.initial_covariance) * np.outer(scale, scale),
            "dynamics": np.asarray(model.dynamics) * scale[:, None] / scale,
            "dynamics_offset": np.asarray(model.dynamics_offset) * scale,
            "dynamics_covariance": np.asarray(model.dynamics_covariance) * np.outer(scale, scale),
            "emission": np.asarray(model.emission) / scale,
        }
    )
    found, plain = kalman.fit(moved, ys, steps=5), kalman.fit(model, ys, steps=5)
    assert found.model.dynamics.dtype == jnp.float32
    with jax.enable_x64(True):
        wide = LinearGaussian(**{name: np.asarray(getattr(model, name), np.float64) for name in NAMES})
        exact = kalman.fit(wide, ys.astype(float), steps=5)
    np.testing.assert_allclose(plain.log_likelihoods, exact.log_likelihoods, rtol=2e-5)
    np.testing.assert_allclose(found.log_likelihoods, exact.log_likelihoods, rtol=2e-5)
    np.testing.assert_allclose(np.asarray(found.model.emission) * scale, exact.model.emission, rtol=1e-3, atol=1e-3)


def test_nothing_seen_changes_nothing():
    model, ys = make("independent_noise", dtype=np.float32)
    for data in (ys[:0], np.full_like(ys[:1], np.nan)):
        found, total = kalman.em_step(model, data)
        assert total == 0
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(a, b)
    one = kalman.em_step(model, ys[:1])[0]
    np.testing.assert_array_equal(one.dynamics, model.dynamics)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one))


@SLOW
def test_one_step_is_that_of_dynamax(x64):
    """With complete data, of which alone it learns."""
    lgssm = pytest.importorskip("dynamax.linear_gaussian_ssm")
    model, ys = make("random", times=14)
    theirs = lgssm.LinearGaussianSSM(3, 2)
    given = {"initial_mean": "initial_mean", "initial_covariance": "initial_covariance"}
    for ours, other in (("dynamics", "dynamics"), ("emission", "emission")):
        given |= {
            f"{other}_weights": ours,
            f"{other}_bias": f"{ours}_offset",
            f"{other}_covariance": f"{ours}_covariance",
        }
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, props = theirs.initialize(
            jax.random.key(0), **{name: getattr(model, ours) for name, ours in given.items()}
        )
        statistics, total = theirs.e_step(params, jnp.asarray(ys))
        state = theirs.initialize_m_step_state(params, props)
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], statistics)
        after = theirs.m_step(params, props, batch, state)[0]
    found, likelihood = kalman.em_step(model, ys)
    np.testing.assert_allclose(likelihood, total, rtol=1e-6)
    pairs = (
        (found.dynamics, after.dynamics.weights),
        (found.dynamics_offset, after.dynamics.bias),
        (found.dynamics_covariance, after.dynamics.cov),
        (found.emission, after.emissions.weights),
        (found.emission_covariance, after.emissions.cov),
        (found.initial_mean, after.initial.mean),
        (found.initial_covariance, after.initial.cov),
    )
    for ours, other in pairs:
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-6)


def test_errors():
    model, ys = make("growing_noise")
    with pytest.raises(ValueError, match="emission_covariance varies in time"):
        kalman.em_step(model, ys, learn="emission")
    with pytest.raises(ValueError, match="names of"):
        kalman.fit(model, ys, learn=("noise",))
    with pytest.raises(ValueError, match="diffuse"):
        kalman.fit(level(np.float32), NILE, learn="initial_mean")
    with pytest.raises(ValueError, match="number of steps"):
        kalman.fit(model, ys, steps=-1)
    with pytest.raises(ValueError, match="series"):
        kalman.em_step(model, ys[0], batched=True)
