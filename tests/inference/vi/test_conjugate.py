"""Coordinate ascent: updates derived by hand in NumPy, blocks against SciPy, a bound that never falls, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxprob import runtime
from jaxprob.inference import vi


def data(number=30):
    return np.random.default_rng(0).normal(1.0, 0.7, size=number)


def normal_gamma(y):
    """y ~ N(mu, 1 / tau), mu ~ N(0, 10^2), tau ~ Gamma(2, 3)."""
    y = jnp.asarray(y)

    def log_joint(s):
        mu, tau = s["mu"], s["tau"]
        squares = y**2 - 2 * y * mu.mean + mu.square
        prior = -0.5 * mu.square / 100 - 0.5 * np.log(2 * np.pi * 100)
        prior = prior + tau.log - 3 * tau.mean + 2 * np.log(3)
        return prior + jnp.sum(0.5 * tau.log - 0.5 * np.log(2 * np.pi) - 0.5 * tau.mean * squares)

    return log_joint


def test_it_is_the_fixed_point_derived_by_hand(x64):
    y = data()
    found = vi.fit_conjugate(
        normal_gamma(y), {"mu": vi.NormalBlock(), "tau": vi.GammaBlock()}, jax.random.key(0), tolerance=1e-12
    )
    # Bishop (2006), equations 10.26 to 10.30, with this prior.
    e_tau = 1.0
    for _ in range(200):
        precision = 1 / 100 + len(y) * e_tau
        mean = e_tau * y.sum() / precision
        shape, rate = 2 + len(y) / 2, 3 + 0.5 * (((y - mean) ** 2).sum() + len(y) / precision)
        e_tau = shape / rate
    assert bool(found.converged)
    mu, tau = found.distributions["mu"], found.distributions["tau"]
    np.testing.assert_allclose(
        [mu.loc, mu.scale, tau.concentration, tau.rate], [mean, precision**-0.5, shape, rate], rtol=1e-9
    )
    # The bound, term by term.
    e_log = special.digamma(shape) - np.log(rate)
    square = mean**2 + 1 / precision
    elbo = -0.5 * np.log(2 * np.pi * 100) - 0.5 * square / 100 + 2 * np.log(3) + e_log - 3 * e_tau
    elbo += (0.5 * e_log - 0.5 * np.log(2 * np.pi) - 0.5 * e_tau * (y**2 - 2 * y * mean + square)).sum()
    elbo += stats.norm(mean, precision**-0.5).entropy() + stats.gamma(shape, scale=1 / rate).entropy()
    np.testing.assert_allclose(found.elbo, elbo, rtol=1e-10)
    sweeps = np.asarray(found.elbos)[: int(found.num_sweeps)]
    assert (np.diff(sweeps) > -1e-9).all()


def test_a_mixture_has_its_updates(x64):
    rng = np.random.default_rng(1)
    y = np.concatenate([rng.normal(-2, 1, 40), rng.normal(3, 1, 60)])

    # Unit variances: Blei et al. (2017), section 3.1, with random weights.
    def log_joint(s):
        away = jnp.asarray(y)[:, None] ** 2 - 2 * jnp.asarray(y)[:, None] * s["mu"].mean[None] + s["mu"].square[None]
        prior = jnp.sum(-0.5 * s["mu"].square / 25) + jnp.sum(s["pi"].log)
        return prior + jnp.sum(s["z"].probabilities * (s["pi"].log[None] - 0.5 * away))

    blocks = {"z": vi.CategoricalBlock((100, 2)), "mu": vi.NormalBlock((2,)), "pi": vi.DirichletBlock((2,))}
    start = {"mu": vi.NormalBlock((2,)).start(jax.random.key(0))._replace(mean=jnp.array([-1.0, 1.0]))}
    found = vi.fit_conjugate(log_joint, blocks, jax.random.key(0), initial=start, tolerance=1e-11)
    m, v, a = np.array([-1.0, 1.0]), np.ones(2), np.ones(2)
    for _ in range(300):
        logits = special.digamma(a) - special.digamma(a.sum()) + y[:, None] * m - 0.5 * (m**2 + v)
        r = special.softmax(logits, axis=1)
        v = 1 / (1 / 25 + r.sum(0))
        m = v * (r * y[:, None]).sum(0)
        a = 2 + r.sum(0)
    assert bool(found.converged)
    np.testing.assert_allclose(found.distributions["mu"].loc, m, rtol=1e-7)
    np.testing.assert_allclose(found.distributions["pi"].concentration, a, rtol=1e-7)
    np.testing.assert_allclose(found.expected["z"].probabilities, r, atol=1e-7)


def test_a_regression_with_a_wishart_and_vectors(x64):
    # y_i ~ N(w, X^-1) in two dimensions: w normal, X Wishart(4, I).
    y = np.random.default_rng(2).multivariate_normal([1.0, -1.0], [[1.0, 0.5], [0.5, 2.0]], size=25)

    def log_joint(s):
        w, x = s["w"], s["x"]
        outer = jnp.asarray(y.T @ y) - jnp.outer(jnp.asarray(y.sum(0)), w.mean) * 2 + len(y) * w.outer
        return (
            -0.5 * jnp.trace(w.outer)
            + 0.5 * (4 - 3) * x.log_determinant
            - 0.5 * jnp.trace(x.mean)
            + 0.5 * len(y) * x.log_determinant
            - 0.5 * jnp.sum(x.mean * outer)
        )

    blocks = {"w": vi.MultivariateNormalBlock((2,)), "x": vi.WishartBlock((2, 2))}
    found = vi.fit_conjugate(log_joint, blocks, jax.random.key(0), tolerance=1e-11)
    e_x = np.eye(2)
    for _ in range(300):
        covariance = np.linalg.inv(np.eye(2) + len(y) * e_x)
        mean = covariance @ e_x @ y.sum(0)
        away = (y - mean).T @ (y - mean) + len(y) * covariance
        e_x = (4 + len(y)) * np.linalg.inv(np.eye(2) + away)
    np.testing.assert_allclose(found.distributions["w"].mean(), mean, rtol=1e-7)
    np.testing.assert_allclose(found.distributions["x"].mean(), e_x, rtol=1e-7)
    log_det = special.digamma((29 - np.arange(2)) / 2).sum() + 2 * np.log(2) + np.linalg.slogdet(e_x / 29)[1]
    np.testing.assert_allclose(found.expected["x"].log_determinant, log_det, rtol=1e-7)


BLOCKS = [
    (vi.NormalBlock((2,)), lambda d: stats.norm(d.loc, d.scale).entropy().sum()),
    (vi.GammaBlock((2,)), lambda d: stats.gamma(d.concentration, scale=1 / d.rate).entropy().sum()),
    (vi.BetaBlock((2,)), lambda d: sum(stats.beta(a, b).entropy() for a, b in zip(*parameters(d), strict=True))),
    (vi.DirichletBlock((2, 3)), lambda d: sum(stats.dirichlet(a).entropy() for a in np.asarray(d.concentration))),
    (vi.CategoricalBlock((2, 3)), lambda d: sum(stats.entropy(special.softmax(a)) for a in np.asarray(d.logits))),
    (
        vi.MultivariateNormalBlock((2, 3)),
        lambda d: sum(stats.multivariate_normal(m, c).entropy() for m, c in zip(d.mean(), d.covariance(), strict=True)),
    ),
    (vi.WishartBlock((3, 3)), lambda d: stats.wishart(float(d.df), np.asarray(d.mean() / d.df)).entropy()),
]


def parameters(beta):
    return (
        [np.asarray(getattr(beta, name)) for name in ("concentration1", "concentration0")]
        if hasattr(beta, "concentration1")
        else [np.asarray(x) for x in jax.tree.leaves(beta)]
    )


@pytest.mark.parametrize(
    ("block", "entropy"), BLOCKS, ids=lambda x: type(x).__name__ if isinstance(x, vi.Block) else ""
)
def test_entropies_are_scipys_and_moments_those_of_the_distribution(block, entropy, x64):
    natural = block.start(jax.random.key(3))
    # Away from the start, and still in the domain.
    natural = jax.tree.map(lambda leaf: jnp.where(leaf < 0, 1.3 * leaf, leaf + 0.1), natural)
    expected, law = block.expected(natural), block.distribution(natural)
    np.testing.assert_allclose(block.entropy(natural, expected), entropy(law), rtol=1e-8)
    if hasattr(expected, "mean"):
        np.testing.assert_allclose(expected.mean, law.mean(), rtol=1e-8)
    draws = law.sample(jax.random.key(4), 20_000)
    if hasattr(expected, "log"):
        logs = np.log(draws)
        # At most 6 numbers: 4.5 standard errors fail once in 24,000.
        assert (np.abs(logs.mean(0) - expected.log) < 4.5 * logs.std(0) / np.sqrt(len(draws))).all()


def test_it_runs_as_an_algorithm():
    blocks = {"mu": vi.NormalBlock(), "tau": vi.GammaBlock()}
    algorithm = vi.coordinate_ascent(normal_gamma(data().astype(np.float32)), blocks)
    run = runtime.run(algorithm, jax.random.key(0), algorithm.init(None, jax.random.key(1)), 30)
    found = vi.fit_conjugate(normal_gamma(data().astype(np.float32)), blocks, jax.random.key(2))
    np.testing.assert_allclose(
        blocks["mu"].distribution(run.state.position["mu"]).loc, found.distributions["mu"].loc, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: vi.fit_conjugate(lambda s: s["x"].mean ** 2, {"x": vi.NormalBlock()}, jax.random.key(0)),
            "not linear .* 'x'",
        ),
        (
            lambda: vi.fit_conjugate(lambda s: s["x"].mean, {"x": vi.NormalBlock((3,))}, jax.random.key(0)),
            "one floating number",
        ),
        (lambda: vi.coordinate_ascent("joint", {"x": vi.NormalBlock()}), "log_joint"),
        (lambda: vi.coordinate_ascent(lambda s: 0.0, {}), "blocks"),
        (lambda: vi.coordinate_ascent(lambda s: 0.0, {"x": "normal"}), "'x'"),
        (lambda: vi.DirichletBlock(()), "last axis"),
        (lambda: vi.WishartBlock((2, 3)), "equal"),
        (
            lambda: vi.fit_conjugate(
                lambda s: -s["x"].square, {"x": vi.NormalBlock()}, jax.random.key(0), initial={"z": 0}
            ),
            "'z'",
        ),
        (
            lambda: vi.fit_conjugate(
                lambda s: -s["x"].square, {"x": vi.NormalBlock()}, jax.random.key(0), tolerance=0.0
            ),
            "tolerance",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
