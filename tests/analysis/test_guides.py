"""What approximations are worth: evidence and ELBO in closed form, the k of a known tail, bias and width of guides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import analysis, models
from jaxprob.distributions import HalfNormal, Normal, Transformed, flows
from jaxprob.inference import vi


def normal_guide(loc, scale):
    """A guide over positions {"x": (n,)}."""
    loc, scale = (jnp.asarray(x, jnp.float32) for x in (loc, scale))
    law = Transformed(flows.StandardNormal(loc.size), flows.DiagonalAffine(loc, jnp.log(scale)))
    return vi.Guide(law, vi.Layout.of({"x": loc}))


def log_density(position):
    return jnp.sum(-0.5 * position["x"] ** 2) + 3.0


def test_an_exact_guide_has_equal_ratios():
    quality = analysis.guide_quality(log_density, normal_guide(np.zeros(3), np.ones(3)), jax.random.key(0))
    assert bool(quality.reliable)
    np.testing.assert_allclose(quality.log_evidence, 3 + 1.5 * np.log(2 * np.pi), rtol=1e-5)
    np.testing.assert_allclose(quality.effective_sample_size, 4000, rtol=1e-3)
    assert quality.draws["x"].shape == (4000, 3)


@pytest.mark.parametrize(("scale", "reliable"), [(1.3, True), (0.9, True), (0.5, False)])
def test_k_is_that_of_the_tail(scale, reliable):
    quality = analysis.guide_quality(log_density, normal_guide(np.zeros(1), np.full(1, scale)), jax.random.key(1))
    assert bool(quality.reliable) is reliable
    # p / q of normals: P(ratio > r) falls as r^(-1 / k) with k = 1 - scale^2 for scale < 1, and is bounded above 1.
    if scale < 1:
        assert abs(float(quality.pareto_k) - (1 - scale**2)) < 0.2
    else:
        assert quality.pareto_k < 0
    elbo = 3 - 0.5 * scale**2 + 0.5 * (1 + np.log(2 * np.pi)) + np.log(scale)
    assert abs(float(quality.elbo) - elbo) < 4.5 * float(quality.elbo_error)  # fails once in 150,000


def test_it_takes_what_approximates_a_posterior():
    @models.joint
    def program():
        a = yield "a", Normal(0.0, 2.0)
        yield "y", Normal(a, jnp.ones(5))

    y = jnp.arange(5.0)
    posterior = program().condition(y=y)
    covariance = 4 * np.ones((5, 5)) + np.eye(5)
    exact = -0.5 * np.asarray(y) @ np.linalg.solve(covariance, y) - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    for guide in (vi.laplace(posterior, key=jax.random.key(0)), vi.pathfinder(posterior, key=jax.random.key(0))):
        quality = analysis.guide_quality(posterior, guide, jax.random.key(2))
        assert bool(quality.reliable)
        np.testing.assert_allclose(quality.log_evidence, exact, atol=5e-3)


def test_nan_is_not_reliable():
    guide = normal_guide(np.zeros(1), np.ones(1))
    quality = analysis.guide_quality(lambda q: jnp.where(q["x"][0] > 2, jnp.nan, 0.0), guide, jax.random.key(0))
    assert not bool(quality.reliable)
    assert np.isnan(quality.pareto_k)


@models.joint
def conjugate():
    a = yield "a", Normal(0.0, 1.0)
    b = yield "b", Normal(jnp.zeros(2), 1.0)
    yield "y", Normal(a, 0.5)
    yield "z", Normal(b, 0.5)


def exact_guide(shift, narrow):
    def fit(posterior, key):
        # Prior N(0, 1) and one observation with variance 1/4: N(0.8 y, 0.2).
        y, z = posterior.data["y"], posterior.data["z"]
        loc = 0.8 * jnp.concatenate([y[None], z])
        law = flows.DiagonalAffine(loc + shift, jnp.full(3, np.log(narrow * np.sqrt(0.2)), loc.dtype))
        layout = vi.Layout.of({"a": jnp.zeros(()), "b": jnp.zeros(2)})
        return vi.Guide(Transformed(flows.StandardNormal(3), law), layout)

    return fit


@pytest.mark.parametrize(("shift", "narrow"), [(0.0, 1.0), (0.2, 1.0), (0.0, 0.6)])
def test_calibration_tells_bias_from_width(shift, narrow):
    posterior = conjugate().condition(y=jnp.zeros(()), z=jnp.zeros(2))
    found = analysis.variational_calibration(posterior, exact_guide(shift, narrow), jax.random.key(0), repeats=200)
    z, width = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(part)]) for part in (found.z, found.width))
    assert found.ranks["b"].shape == (200, 2)
    # Three z-scores below 4 and three widths (sd 0.9 / sqrt(200)) within 4.5 of theirs: fails once in 5,000.
    if shift:
        # The truth lies below: ranks fall by about 0.126 and z is about -6 with a standard error of one.
        assert (z < -2).all()
    else:
        assert (np.abs(z) < 4).all()
    if narrow < 1:
        assert (width > 1.3).all()
    else:
        assert (np.abs(width - 1) < 4.5 * 0.9 / np.sqrt(200)).all()


def test_calibration_fits_guides():
    @models.joint
    def program():
        scale = yield "scale", HalfNormal(1.0)
        yield "y", Normal(jnp.zeros(10), scale)

    posterior = program().condition(y=jnp.ones(10))

    def fit(posterior, key):
        return vi.fit(posterior, key, vi.mean_field(), max_steps=1000).guide

    found = analysis.variational_calibration(posterior, fit, jax.random.key(0), repeats=20, draws=100)
    assert 0.2 < float(found.mean["scale"]) < 0.8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: analysis.guide_quality(log_density, "guide", jax.random.key(0)), "guide"),
        (lambda: analysis.guide_quality(3.0, normal_guide([0.0], [1.0]), jax.random.key(0)), "target"),
        (lambda: analysis.guide_quality(log_density, normal_guide([0.0], [1.0]), jax.random.key(0), draws=9), "draws"),
        (lambda: analysis.variational_calibration(log_density, exact_guide(0, 1), jax.random.key(0)), "posterior"),
    ],
)
def test_bad_input_is_told_in_one_line(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
