"""Guides: their densities against SciPy, their draws against their densities, structures, families, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.distributions import flows
from jaxprob.inference import vi

POSITION = {"a": jnp.array([1.0, -2.0]), "b": (jnp.array(0.5), jnp.zeros((1, 2)))}
FAMILIES = {
    "mean_field": vi.mean_field(0.5),
    "full_rank": vi.full_rank(0.5),
    "low_rank": vi.low_rank(2, 0.5),
    "blocks": vi.blocks({"a": vi.full_rank(0.5)}, rest=vi.mean_field(0.5)),
}


def disturbed(guide, seed=0):
    """A guide whose parameters are not those it starts from."""
    leaves, structure = jax.tree.flatten(guide)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype) for leaf in leaves]
    )


def moments(name, guide):
    """Mean and covariance in NumPy, by the definition of the parameters."""
    if name == "blocks":
        parts = [moments(own, part) for own, part in zip(("full_rank", "mean_field"), guide.guides, strict=True)]
        covariance = np.zeros((5, 5))
        covariance[:2, :2], covariance[2:, 2:] = parts[0][1], parts[1][1]
        return np.concatenate([parts[0][0], parts[1][0]]), covariance
    if name == "low_rank":
        law = guide.distribution
        loc, log_scale, factor = (np.asarray(x, float) for x in (law.loc, law.log_scale, law.factor))
        return loc, np.diag(np.exp(2 * log_scale)) + factor @ factor.T
    bijector = guide.distribution.bijector
    if name == "mean_field":
        return np.asarray(bijector.loc, float), np.diag(np.exp(2 * np.asarray(bijector.log_scale, float)))
    lower = np.tril(np.asarray(bijector.lower, float), -1) + np.diag(np.exp(np.asarray(bijector.log_diagonal, float)))
    return np.asarray(bijector.loc, float), lower @ lower.T


def flat(position):
    return np.concatenate(
        [np.asarray(leaf, float).reshape(*np.shape(position["b"][0]), -1) for leaf in jax.tree.leaves(position)], -1
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_density_and_entropy_are_scipys(name):
    guide = disturbed(FAMILIES[name].init(jax.random.key(0), POSITION))
    positions, log_prob = guide.sample_and_log_prob(jax.random.key(1), (7,))
    assert positions["b"][1].shape == (7, 1, 2)
    mean, covariance = moments(name, guide)
    law = stats.multivariate_normal(mean, covariance)
    np.testing.assert_allclose(log_prob, law.logpdf(flat(positions)), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(guide.log_prob(positions), log_prob, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(guide.entropy(), law.entropy(), rtol=1e-5)
    one = jax.tree.map(lambda leaf: leaf[3], positions)
    np.testing.assert_allclose(guide.log_prob(one), log_prob[3], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_draws_have_the_moments(name):
    guide = disturbed(FAMILIES[name].init(jax.random.key(0), POSITION))
    draws = flat(jax.jit(lambda guide: guide.sample(jax.random.key(2), 20_000))(guide))
    mean, covariance = moments(name, guide)
    # 5 means and 15 covariances with known standard errors: |z| < 4.5 fails once in 7,000 for each of the families.
    z = (draws.mean(0) - mean) / np.sqrt(np.diag(covariance) / len(draws))
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / len(draws))
    assert np.abs(z).max() < 4.5
    assert np.abs((np.cov(draws.T) - covariance) / error).max() < 4.5


def test_guides_start_around_the_position():
    for family in FAMILIES.values():
        guide = family.init(jax.random.key(0), POSITION)
        positions = guide.sample(jax.random.key(1), 4000)
        np.testing.assert_allclose(positions["a"].mean(0), POSITION["a"], atol=5 * 0.55 / np.sqrt(4000))
        assert 0.4 < positions["a"].std(0).min() < positions["a"].std(0).max() < 0.6


def test_a_flow_guide_is_the_flow_moved_and_scaled():
    architecture = flows.Architecture("shift", _shift)
    guide = vi.flow(architecture, 0.5).init(jax.random.key(0), POSITION)
    mean = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(POSITION)]) + 0.5 * 3.0
    positions, log_prob = guide.sample_and_log_prob(jax.random.key(1), 5)
    np.testing.assert_allclose(
        log_prob, stats.multivariate_normal(mean, 0.25 * np.eye(5)).logpdf(flat(positions)), rtol=1e-5
    )


def _shift(key, shape, context_size, dtype):
    return flows.DiagonalAffine(jnp.full(shape, 3.0, dtype), jnp.zeros(shape, dtype))


def test_float64_stays_and_leaves_keep_their_dtypes(x64):
    position = {"x": jnp.zeros(2, jnp.float32), "y": jnp.zeros(3, jnp.float64)}
    for family in (vi.mean_field(), vi.full_rank(), vi.low_rank(1)):
        guide = family.init(jax.random.key(0), position)
        draw, log_prob = guide.sample_and_log_prob(jax.random.key(1))
        assert (draw["x"].dtype, draw["y"].dtype, log_prob.dtype) == (jnp.float32, jnp.float64, jnp.float64)


def test_guides_cross_jit_and_vmap():
    family = vi.full_rank()
    guides = jax.vmap(lambda x: family.init(jax.random.key(0), {"x": x}))(jnp.arange(6.0).reshape(3, 2))
    draws = jax.vmap(lambda guide: guide.sample(jax.random.key(1)))(guides)["x"]
    for i in range(3):
        one = family.init(jax.random.key(0), {"x": jnp.arange(6.0).reshape(3, 2)[i]})
        np.testing.assert_allclose(draws[i], one.sample(jax.random.key(1))["x"], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vi.mean_field(0.0), "scale is 0.0"),
        (lambda: vi.low_rank(0), "rank is 0"),
        (lambda: vi.flow(vi.mean_field()), "architecture"),
        (lambda: vi.blocks({"a": vi.mean_field()}).init(jax.random.key(0), POSITION), "without 'b'"),
        (lambda: vi.blocks({"c": vi.mean_field()}).init(jax.random.key(0), POSITION), "with 'c'"),
        (
            lambda: vi.blocks({"a": vi.mean_field(), ("a", "b"): vi.mean_field()}).init(jax.random.key(0), POSITION),
            "twice",
        ),
        (lambda: vi.blocks({"a": "full"}), "a family of guides"),
        (lambda: vi.blocks({"a": vi.mean_field()}).init(jax.random.key(0), jnp.zeros(2)), "a dict"),
        (lambda: vi.mean_field().init(jax.random.key(0), {}), "without arrays"),
        (lambda: vi.mean_field().init(jax.random.key(0), {"n": jnp.arange(3)}), "'n'"),
        (lambda: vi.mean_field().init(jax.random.key(0), POSITION).log_prob({"a": jnp.zeros(2)}), "structure"),
        (lambda: vi.mean_field().init(jax.random.key(0), {"a": jnp.zeros(2)}).log_prob({"a": jnp.zeros(3)}), "'a'"),
    ],
)
def test_bad_input_is_told_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["mean_field", "full_rank", "low_rank", "blocks"])
@pytest.mark.parametrize("approximation", ["laplace", "pathfinder"])
def test_guides_in_the_place_of_an_approximation(approximation, family):
    rng = np.random.default_rng(5)
    units = np.array([1e3, 1.0, 1e-3, 2.0, 0.5])
    root = rng.normal(size=(5, 5)) * units[:, None]
    precision, mean = np.linalg.inv(root @ root.T + 0.1 * np.diag(units**2)), 3 * units

    def log_density(position):
        z = flat_jax(position) - jnp.asarray(mean, jnp.float32)
        return -0.5 * jnp.dot(
            z, jnp.dot(jnp.asarray(precision, jnp.float32), z, precision="highest"), precision="highest"
        )

    found = vi.laplace(log_density, POSITION)
    if approximation == "pathfinder":
        found = vi.pathfinder(log_density, POSITION, jax.random.key(0), num_draws=1)
    guide = FAMILIES[family].init(jax.random.key(1), found)
    positions, log_prob = guide.sample_and_log_prob(jax.random.key(2), 20_000)
    np.testing.assert_allclose(guide.log_prob(positions)[:50], log_prob[:50], rtol=2e-4, atol=2e-3)
    draws = flat(positions)
    # What an approximation draws itself: the same standard deviations, and of a full guide the same correlations.
    own = flat(jax.vmap(found.sample)(jax.random.split(jax.random.key(3), 20_000)))
    np.testing.assert_allclose(draws.std(0), own.std(0), rtol=0.05)
    np.testing.assert_allclose(draws.mean(0), own.mean(0), atol=0.05 * own.std(0).max() + 1e-9, rtol=0.05)
    away = np.abs(np.corrcoef(draws.T) - np.corrcoef(own.T))[np.triu_indices(5, 1)]
    assert away.max() < 0.05 if family == "full_rank" else away.max() > 0.05
    # The density is that of the draws: E[-log q] is the entropy.
    assert abs(float(-log_prob.mean()) - float(guide.entropy())) < 4.5 * float(log_prob.std()) / np.sqrt(20_000)
    # The place is fixed: no gradient reaches it.
    gradient = jax.grad(lambda g: g.sample_and_log_prob(jax.random.key(4))[1] + g.log_prob(POSITION))(guide)
    parts = gradient.guides if family == "blocks" else (gradient,)
    assert all(float(jnp.abs(leaf).max()) == 0 for part in parts for leaf in jax.tree.leaves(part.place))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def flat_jax(position):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(position)])
