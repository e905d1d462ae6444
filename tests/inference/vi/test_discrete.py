"""Relaxed categories and estimators of expectations over categories, against enumeration and closed forms.

Scores beyond 4.5 of means of independent repeats have a false-alarm rate of 7e-6 each.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax

from jaxprob.inference import vi

LOGITS = np.array([[0.2, -0.5, 0.9], [0.0, 1.1, -0.3]])
WEIGHTS = np.array([0.3, -0.7, 1.2])
REPEATS = 20_000


def f(weights, z):
    """Two variables that act together; not linear, and fine inside of the simplex."""
    a, b = jnp.dot(z[0], weights), jnp.dot(z[1], weights)
    return (a - 0.45) ** 2 + jnp.sin(2 * a * b) + z[0, 0] * z[1, 2]


def f_numpy(weights, i, j):
    a, b = weights[i], weights[j]
    return (a - 0.45) ** 2 + np.sin(2 * a * b) + (i == 0) * (j == 2)


def expectation(logits, weights):
    p = softmax(logits, axis=1)
    return sum(p[0, i] * p[1, j] * f_numpy(weights, i, j) for i, j in itertools.product(range(3), repeat=2))


def central(function, x, step=1e-5):
    found = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        h = np.zeros_like(x)
        h[index] = step
        found[index] = (function(x + h) - function(x - h)) / (2 * step)
    return found


SLOPES = central(lambda logits: expectation(logits, WEIGHTS), LOGITS)
WEIGHT_SLOPES = central(lambda weights: expectation(LOGITS, weights), WEIGHTS)


def control(params, z):
    """Nothing to do with f."""
    return params["scale"] * jnp.sum(jnp.tanh(z) * jnp.asarray(LOGITS, z.dtype)) + jnp.cos(z[0, 1])


def estimates(estimator, repeats=REPEATS, logits=LOGITS, weights=WEIGHTS, seed=0, function=f, **options):
    """Values and gradients with respect to logits and weights, of each repeat."""
    logits, weights = jnp.asarray(logits, jnp.float32), jnp.asarray(weights, jnp.float32)
    if estimator == "relax":
        options["control"] = lambda z: control({"scale": 0.5}, z)

    @jax.jit
    def run(keys):
        def one(key):
            return jax.value_and_grad(
                lambda x, w: vi.discrete_expectation(lambda z: function(w, z), x, key, estimator=estimator, **options),
                (0, 1),
            )(logits, weights)

        return jax.vmap(one)(keys)

    values, (by_logits, by_weights) = run(jax.random.split(jax.random.key(seed), repeats))
    return [np.asarray(x, float) for x in (values, by_logits, by_weights)]


def z_scores(samples, expected):
    spread = samples.std(axis=0)
    error = samples.mean(axis=0) - expected
    assert np.all(np.abs(error[spread < 1e-7]) < 1e-6)
    return np.where(spread < 1e-7, 0, error / np.maximum(spread, 1e-7) * np.sqrt(len(samples)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_enumerates(dtype, x64):
    logits, weights = jnp.asarray(LOGITS, dtype), jnp.asarray(WEIGHTS, dtype)
    value, (by_logits, by_weights) = jax.jit(
        jax.value_and_grad(
            lambda x, w: vi.discrete_expectation(lambda z: f(w, z), x, estimator="exact"),
            (0, 1),
        )
    )(logits, weights)
    assert value.dtype == by_logits.dtype == by_weights.dtype == dtype
    tolerance = 1e-5 if dtype == "float32" else 1e-8
    np.testing.assert_allclose(value, expectation(LOGITS, WEIGHTS), rtol=tolerance)
    np.testing.assert_allclose(by_logits, SLOPES, atol=tolerance)
    np.testing.assert_allclose(by_weights, WEIGHT_SLOPES, atol=tolerance)


@pytest.mark.parametrize(
    ("estimator", "options"),
    [("score", {}), ("score", {"draws": 3}), ("rebar", {"scale": 0.7}), ("rebar", {"draws": 2}), ("relax", {})],
)
def test_estimators_without_bias(estimator, options):
    values, by_logits, by_weights = estimates(estimator, **options)
    assert abs(z_scores(values, expectation(LOGITS, WEIGHTS))) < 4.5
    assert np.max(np.abs(z_scores(by_logits, SLOPES))) < 4.5
    assert np.max(np.abs(z_scores(by_weights, WEIGHT_SLOPES))) < 4.5
    # What the scores would detect: an error of a fifth of the largest slope.
    assert np.max(by_logits.std(axis=0)) * 4.5 / np.sqrt(REPEATS) < 0.2 * np.max(np.abs(SLOPES))


def toy(weights, z):
    """A sum over variables: what the score of one is multiplied by has the noise of all."""
    return jnp.sum((z[:, 1] - 0.45) ** 2) + 0 * weights[0]


def toy_slopes(estimator, variables, repeats=REPEATS, **options):
    found = estimates(estimator, repeats, np.zeros((variables, 2)), function=toy, **options)[1]
    return found, np.tile([-0.025, 0.025], (variables, 1))  # p (1 - p) (f(1) - f(0))


def test_relaxed_estimators_are_less_noisy():
    """Noise of ten variables at most a tenth of REINFORCE's."""
    score = toy_slopes("score", 10)[0].var(axis=0).sum()
    for estimator in ("straight_through", "gumbel_softmax"):
        assert toy_slopes(estimator, 10, temperature=0.5)[0].var(axis=0).sum() < 0.1 * score


def test_bias_falls_with_the_temperature():
    """For a quadratic function at corners (straight-through) or inside. That of others falls for relaxed draws only."""
    for estimator in ("straight_through", "gumbel_softmax"):
        away = []
        for temperature in (1.0, 0.25):
            found, exact = toy_slopes(estimator, 1, temperature=temperature)
            away.append(np.abs(found.mean(axis=0) - exact).max())
        assert away[1] < 0.3 * away[0]
        assert away[0] > 0.005
    away = [np.linalg.norm(estimates("gumbel_softmax", temperature=t)[1].mean(axis=0) - SLOPES) for t in (1.5, 0.25)]
    assert away[1] < 0.5 * away[0]


def test_straight_through_has_the_exact_value():
    """And the exact gradient of what f depends on."""
    values, _, by_weights = estimates("straight_through")
    assert abs(z_scores(values, expectation(LOGITS, WEIGHTS))) < 4.5
    assert np.max(np.abs(z_scores(by_weights, WEIGHT_SLOPES))) < 4.5


def test_controls_take_noise_away():
    score, exact = toy_slopes("score", 6)
    rebar, _ = toy_slopes("rebar", 6)
    several, _ = toy_slopes("score", 6, draws=4)
    assert rebar.var(axis=0).sum() < 0.4 * score.var(axis=0).sum()
    assert several.var(axis=0).sum() < 0.1 * score.var(axis=0).sum()  # a mean of four without baseline: 0.25
    for found in (score, rebar, several):
        assert np.max(np.abs(z_scores(found, exact))) < 4.5


def test_a_scale_of_zero_is_no_control():
    plain, none = estimates("score", 50), estimates("rebar", 50, scale=0.0)
    for one, other in zip(plain, none, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_control_is_trained_by_the_mean_square_of_the_estimate(x64):
    """Its slope for the same keys by central differences: temperature and scale of REBAR, parameters of a control."""
    logits, weights = jnp.asarray(LOGITS), jnp.asarray(WEIGHTS)
    keys = jax.random.split(jax.random.key(3), 200)

    def loss(estimator, tuning, logits, weights, key):
        g = lambda z: f(weights, z)  # noqa: E731
        if estimator == "rebar":
            return vi.discrete_expectation(
                g, logits, key, estimator=estimator, temperature=tuning[0], scale=tuning[1], draws=1
            )
        own = lambda z: control({"scale": tuning[0]}, z) * tuning[1]  # noqa: E731
        return vi.discrete_expectation(g, logits, key, estimator=estimator, control=own)

    for estimator in ("rebar", "relax"):

        @jax.jit
        def slopes(tuning, estimator=estimator):
            own = lambda t, x, w, key: loss(estimator, t, x, w, key)  # noqa: E731
            return jax.vmap(jax.grad(own, (0, 1, 2)), (None, None, None, 0))(tuning, logits, weights, keys)

        tuning = np.array([0.6, 0.8])
        by_tuning, _, by_weights = slopes(jnp.asarray(tuning))
        square = lambda t, slopes=slopes: np.mean(np.sum(np.asarray(slopes(jnp.asarray(t))[1]) ** 2, axis=(1, 2)))  # noqa: E731
        np.testing.assert_allclose(np.mean(by_tuning, axis=0), central(square, tuning), rtol=1e-5)
        assert np.all(np.abs(np.mean(by_tuning, axis=0)) > 1e-3)
        # f is not trained by it: its slope is that of the value at the draw, as without a control.
        drawn = jax.vmap(
            jax.grad(lambda w, key: vi.discrete_expectation(lambda z: f(w, z), logits, key, estimator="score")),
            (None, 0),
        )(weights, keys)
        np.testing.assert_allclose(by_weights, drawn, atol=1e-12)


def test_examples_by_vmap_are_those_of_a_loop():
    """Gradients of a mean over examples, each with a function and logits of its own."""
    logits = jnp.asarray(np.stack([LOGITS, -LOGITS, LOGITS**2]), jnp.float32)
    weights = jnp.asarray(np.stack([WEIGHTS, 2 * WEIGHTS, WEIGHTS - 1]), jnp.float32)
    keys = jax.random.split(jax.random.key(8), 3)

    def one(weights, logits, key):
        return vi.discrete_expectation(lambda z: f(weights, z), logits, key, estimator="rebar", draws=2)

    many = jax.jit(jax.grad(lambda *args: jnp.mean(jax.vmap(one)(*args)), (0, 1)))(weights, logits, keys)
    single = jax.jit(jax.grad(one, (0, 1)))
    alone = [single(weights[i], logits[i], keys[i]) for i in range(3)]
    for part in range(2):
        np.testing.assert_allclose(many[part], np.stack([own[part] for own in alone]) / 3, rtol=1e-4, atol=1e-6)


def test_outcomes_that_cannot_occur():
    """One variable of two outcomes, and the same with a third of probability zero where f is not finite."""
    logits = jnp.asarray([0.4, -0.3, -jnp.inf])

    def g(z):
        return jnp.where(z[2] == 1, jnp.inf, (z[0] - 0.45) ** 2)

    p = softmax([0.4, -0.3])
    exact = p[0] * p[1] * (0.55**2 - 0.45**2)
    options = {"exact": {}, "score": {"draws": 2}, "rebar": {}, "straight_through": {}, "gumbel_softmax": {}}
    for estimator, own in options.items():
        slopes = jax.jit(
            jax.vmap(
                jax.grad(lambda x, k, e=estimator, o=own: vi.discrete_expectation(g, x, k, estimator=e, **o)), (None, 0)
            )
        )(logits, jax.random.split(jax.random.key(0), 4000))
        slopes = np.asarray(slopes, float)
        assert np.all(np.isfinite(slopes))
        assert np.all(slopes[:, 2] == 0)
        if estimator in ("exact", "score", "rebar"):
            assert abs(z_scores(slopes[:, 0], exact)) < 4.5
    tuned = lambda t: vi.discrete_expectation(g, logits, jax.random.key(1), estimator="rebar", temperature=t)  # noqa: E731
    assert jnp.isfinite(jax.jit(jax.grad(tuned))(0.5))


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_relaxed_draws_have_the_law_of_their_density(temperature, x64):
    """Two outcomes: the log odds of y are logistic. Three: probabilities of cells of the simplex by quadrature."""
    logits = jnp.asarray([0.5, -0.7])
    keys = jax.random.split(jax.random.key(0), 20_000)
    y = np.asarray(jax.jit(jax.vmap(lambda key: vi.gumbel_softmax(key, logits, temperature)))(keys))
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-12)
    odds = (np.log(y[:, 0]) - np.log(y[:, 1])) * temperature - 1.2
    assert scipy.stats.kstest(odds, scipy.stats.logistic.cdf).pvalue > 1e-5  # false alarm
    grid = np.linspace(-40, 40, 4001)
    points = 1 / (1 + np.exp(-grid))
    own = vi.gumbel_softmax_log_prob(jnp.stack([points, 1 - points], axis=-1)[1000:-1000], logits, temperature)
    # The density of y by that of its log odds: dy = y (1 - y) d(odds).
    p = points[1000:-1000]
    law = scipy.stats.logistic.logpdf(grid[1000:-1000] * temperature - 1.2) + np.log(temperature) - np.log(p * (1 - p))
    np.testing.assert_allclose(own, law, atol=1e-6)


def test_the_density_integrates_to_one(x64):
    """Three outcomes, over log ratios: to 1e-4, and the mean of y_0 against draws."""
    logits, temperature = jnp.asarray([0.5, -0.7, 0.1]), 0.7
    axis = jnp.linspace(-40, 40, 801)
    u, v = jnp.meshgrid(axis, axis)
    y = jax.nn.softmax(jnp.stack([u, v, jnp.zeros_like(u)], axis=-1).reshape(-1, 3), axis=-1)
    # Entries sum to one up to rounding; the determinant of the map from log ratios is the product of the entries.
    density = jnp.exp(vi.gumbel_softmax_log_prob(y, logits, temperature) + jnp.sum(jnp.log(y), axis=-1)) * 0.01
    np.testing.assert_allclose(jnp.sum(density), 1, atol=1e-4)
    draws = jax.vmap(lambda key: vi.gumbel_softmax(key, logits, temperature))(
        jax.random.split(jax.random.key(1), 20_000)
    )
    assert np.max(np.abs(z_scores(np.asarray(draws), np.asarray(density @ y)))) < 4.5


def test_hard_draws_are_corners_with_the_relaxed_gradient():
    logits = jnp.asarray(LOGITS, jnp.float32)
    hard = lambda x: vi.gumbel_softmax(jax.random.key(5), x, 0.7, hard=True)  # noqa: E731
    soft = lambda x: vi.gumbel_softmax(jax.random.key(5), x, 0.7)  # noqa: E731
    drawn = np.asarray(hard(logits))
    assert set(drawn.ravel()) == {0.0, 1.0}
    np.testing.assert_array_equal(drawn.argmax(axis=1), np.asarray(soft(logits)).argmax(axis=1))
    np.testing.assert_array_equal(jax.jacobian(hard)(logits), jax.jacobian(soft)(logits))
    many = jax.vmap(lambda key: vi.gumbel_softmax(key, logits, 0.7, hard=True))(
        jax.random.split(jax.random.key(6), 20_000)
    )
    assert np.max(np.abs(z_scores(np.asarray(many), softmax(LOGITS, axis=1)))) < 4.5
    masked = jnp.asarray([0.0, -jnp.inf, 1.0])
    low = jax.grad(lambda t: vi.gumbel_softmax(jax.random.key(7), masked, t)[0])
    assert jnp.isfinite(low(0.5))


def test_the_density_at_the_edge_and_outside():
    logits = jnp.asarray([0.0, 0.5, -1.0])
    both = jax.value_and_grad(lambda y, t: vi.gumbel_softmax_log_prob(y, logits, t))
    for temperature in (0.1, 1.0):
        value, slope = both(jnp.asarray([1.0, 0.0, 0.0]), temperature)
        assert jnp.isfinite(value)
        assert np.all(np.isfinite(slope))
    outside = jnp.asarray([[0.5, 0.7, -0.2], [0.5, 0.5, 0.5], [jnp.nan, 0.5, 0.5]])
    assert np.all(vi.gumbel_softmax_log_prob(outside, logits, 1.0) == -jnp.inf)
    # A constant that is added to the logits changes nothing.
    y = jnp.asarray([0.2, 0.3, 0.5])
    np.testing.assert_allclose(
        vi.gumbel_softmax_log_prob(y, logits + 5, 0.5), vi.gumbel_softmax_log_prob(y, logits, 0.5), rtol=1e-5
    )


def test_bad_arguments():
    key, logits, g = jax.random.key(0), jnp.zeros(3), lambda z: z[0]
    cases = {
        r"discrete_expectation: estimator is 'best'; expected one of": lambda: vi.discrete_expectation(
            g, logits, key, estimator="best"
        ),
        r"discrete_expectation: control is None; expected a function for 'relax'": lambda: vi.discrete_expectation(
            g, logits, key, estimator="relax"
        ),
        r"discrete_expectation: draws is 0": lambda: vi.discrete_expectation(
            g, logits, key, estimator="score", draws=0
        ),
        r"discrete_expectation: temperature is -1.0; expected a positive number": lambda: vi.discrete_expectation(
            g, logits, key, estimator="rebar", temperature=-1.0
        ),
        r"discrete_expectation: logits is of shape \(\); expected": lambda: vi.discrete_expectation(
            g, 0.0, key, estimator="score"
        ),
        r"discrete_expectation: logits is of shape \(30, 3\), 3\^30 combinations": lambda: vi.discrete_expectation(
            g, jnp.zeros((30, 3)), estimator="exact"
        ),
        r"discrete_expectation: f is of shape \(3,\); expected a scalar": lambda: vi.discrete_expectation(
            lambda z: z, logits, estimator="exact"
        ),
        r"gumbel_softmax: temperature is 0.0": lambda: vi.gumbel_softmax(key, logits, 0.0),
        r"gumbel_softmax_log_prob: y is of shape \(2,\); expected shape \(\*shape, 3\)": lambda: (
            vi.gumbel_softmax_log_prob(jnp.ones(2) / 2, logits, 1.0)
        ),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)
    for message, call in {
        r"discrete_expectation: key is None; expected one random key": lambda: vi.discrete_expectation(
            g, logits, estimator="score"
        ),
        r"discrete_expectation: f is 3": lambda: vi.discrete_expectation(3, logits, key, estimator="score"),
        r"gumbel_softmax: key is 3": lambda: vi.gumbel_softmax(3, logits, 1.0),
    }.items():
        with pytest.raises(TypeError, match=message):
            call()
