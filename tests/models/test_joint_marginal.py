"""Discrete sites summed out, against enumeration of every assignment in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats as st

from jaxprob import models
from jaxprob.distributions import Bernoulli, Binomial, Categorical, HalfNormal, Normal, Uniform

KEY = jax.random.key(0)
Y = np.array([0.1, 2.0, -1.0, 3.0])
WEIGHTS = np.array([0.5, 0.3, 0.2])


@models.joint
def mixture(y, k=3):
    z = yield "z", Categorical(jnp.broadcast_to(jnp.asarray(WEIGHTS), (len(y), k)))
    mu = yield "mu", Normal(jnp.zeros(k), 3.0)
    scale = yield "scale", HalfNormal(1.0)
    yield "which", models.deterministic(mu[z])
    yield "top", models.deterministic(jnp.max(mu))
    yield "y", Normal(mu[z], scale)


MU, SCALE = np.array([-1.0, 0.5, 2.0]), 0.7


def element_terms():
    return np.log(WEIGHTS) + st.norm.logpdf(Y[:, None], MU, SCALE)  # (n, k)


@pytest.fixture(scope="module")
def posterior():
    return mixture(Y).condition(y=Y, marginalize="z")


def test_mixture_by_enumeration_of_all_assignments(posterior):
    prior = st.norm.logpdf(MU, 0, 3).sum() + st.halfnorm.logpdf(SCALE)
    terms = element_terms()
    total = scipy.special.logsumexp([terms[range(4), z].sum() for z in itertools.product(range(3), repeat=4)])
    position = {"mu": jnp.asarray(MU), "scale": jnp.log(SCALE)}
    value, gradient = jax.jit(jax.value_and_grad(posterior.log_density))(position)
    np.testing.assert_allclose(value, prior + total + np.log(SCALE), rtol=1e-5)
    responsibility = np.exp(terms - scipy.special.logsumexp(terms, axis=1, keepdims=True))
    expected = -MU / 9 + (responsibility * (Y[:, None] - MU) / SCALE**2).sum(axis=0)
    np.testing.assert_allclose(gradient["mu"], expected, rtol=1e-4, atol=1e-5)


def test_what_is_summed_out_is_in_no_position_or_draw(posterior):
    assert posterior.names == ("mu", "scale")
    assert posterior.dim == 4
    assert set(posterior.constrain(posterior.initial(KEY))) == {"mu", "scale", "top"}


def test_pointwise_log_likelihood_of_a_mixture(posterior):
    draws = {"mu": jnp.broadcast_to(jnp.asarray(MU), (2, 3, 3)), "scale": jnp.full((2, 3), SCALE)}
    found = posterior.log_likelihood(draws)["y"]
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found[1, 2], scipy.special.logsumexp(element_terms(), axis=1), rtol=1e-5)


def test_discrete_draws_have_the_conditional_law(posterior):
    # Frequencies of 20000 draws; a z-score beyond 4.5 has probability 7e-6 for each of twelve.
    count = 20_000
    draws = {"mu": jnp.broadcast_to(jnp.asarray(MU), (count, 3)), "scale": jnp.full(count, SCALE)}
    z = np.asarray(posterior.infer_discrete(KEY, draws)["z"])
    assert z.shape == (count, 4)
    terms = element_terms()
    p = np.exp(terms - scipy.special.logsumexp(terms, axis=1, keepdims=True))
    frequency = np.stack([(z == k).mean(axis=0) for k in range(3)], axis=1)
    assert (np.abs(frequency - p) <= 4.5 * np.sqrt(p * (1 - p) / count) + 1 / count).all()
    # Elements are drawn independently.
    joint = ((z[:, 0] == 1) & (z[:, 2] == 0)).mean()
    expected = p[0, 1] * p[2, 0]
    assert abs(joint - expected) < 4.5 * np.sqrt(expected * (1 - expected) / count)


def test_prediction_draws_new_classes(posterior):
    # The predictive mean of y is the prior mean over classes: 20000 draws, z-score beyond 4.5 with probability 7e-6.
    count = 20_000
    draws = {"mu": jnp.broadcast_to(jnp.asarray(MU), (count, 3)), "scale": jnp.full(count, SCALE)}
    y = np.asarray(posterior.predict(KEY, draws)["y"], np.float64)
    mean, variance = WEIGHTS @ MU, WEIGHTS @ (MU**2) + SCALE**2 - (WEIGHTS @ MU) ** 2
    assert (np.abs(y.mean(axis=0) - mean) < 4.5 * np.sqrt(variance / count)).all()
    with_z = posterior.predict(KEY, {**draws, "z": jnp.zeros((count, 4), int)})["y"]
    assert abs(float(with_z.mean()) - MU[0]) < 4.5 * SCALE / np.sqrt(4 * count)


@models.joint
def several(n):
    a = yield "a", Bernoulli(0.3)
    b = yield "b", Bernoulli(jnp.where(a == 1, 0.2, 0.9))
    c = yield "c", Categorical(jnp.broadcast_to(jnp.array([0.36, 0.48, 0.16]), (n, 3)))
    x = yield "x", Normal(0.0, 1.0)
    w = yield "w", Normal(c.astype(x.dtype), 1.0)
    yield "v", Normal(w + c.astype(x.dtype), 2.0)
    yield "y", Normal(x * (a + 2 * b).astype(x.dtype), 1.0)


def test_groups_chains_and_latent_dependents():
    # a and b enter y together; c is summed out for each element; w is latent and depends on c, v observes both.
    program = several(2)
    posterior = program.condition(y=1.0, v=[2.0, 0.5], marginalize=("c", "a", "b"))
    x, w = 0.4, np.array([0.3, 1.4])
    ab = [
        st.bernoulli.logpmf(a, 0.3) + st.bernoulli.logpmf(b, 0.2 if a else 0.9) + st.norm.logpdf(1.0, x * (a + 2 * b))
        for a, b in itertools.product(range(2), repeat=2)
    ]
    prior_c = st.binom.logpmf(np.arange(3), 2, 0.4)[:, None] + st.norm.logpdf(w, np.arange(3)[:, None])
    joint_c = prior_c + st.norm.logpdf([2.0, 0.5], w + np.arange(3)[:, None], 2)
    total = st.norm.logpdf(x) + scipy.special.logsumexp(ab) + scipy.special.logsumexp(joint_c, axis=0).sum()
    position = {"x": jnp.asarray(x), "w": jnp.asarray(w)}
    np.testing.assert_allclose(jax.jit(posterior.log_density)(position), total, rtol=1e-5)
    found = posterior.log_likelihood(position)
    np.testing.assert_allclose(found["y"], scipy.special.logsumexp(ab), rtol=1e-5)
    expected = scipy.special.logsumexp(joint_c, axis=0) - scipy.special.logsumexp(prior_c, axis=0)
    np.testing.assert_allclose(found["v"], expected, rtol=1e-5, atol=1e-6)
    assert {name: value.shape for name, value in posterior.infer_discrete(KEY, position).items()} == {
        "a": (),
        "b": (),
        "c": (2,),
    }


def test_trailing_axes_of_a_dependent_site_belong_to_one_element():
    @models.joint
    def rows(y):
        z = yield "z", Bernoulli(jnp.full(y.shape[0], 0.3))
        yield "y", Normal(jnp.broadcast_to(z[:, None].astype(y.dtype), y.shape), 1.0)

    y = np.array([[0.1, 0.9, 1.2], [-1.0, 0.0, 0.3]])
    posterior = rows(y).condition(y=y, marginalize="z")
    terms = np.stack([st.norm.logpdf(y, k).sum(axis=1) for k in (0, 1)]) + np.log([[0.7], [0.3]])
    np.testing.assert_allclose(
        jax.jit(posterior.log_density)({}), scipy.special.logsumexp(terms, axis=0).sum(), rtol=1e-5
    )


def test_under_jit_and_vmap_over_data():
    position = {"mu": jnp.asarray(MU), "scale": jnp.log(SCALE)}

    def density(y):
        return mixture(y).condition(y=y, marginalize="z").log_density(position)

    ys = np.stack([Y, Y + 1])
    terms = np.log(WEIGHTS) + st.norm.logpdf(ys[..., None], MU, SCALE)
    prior = st.norm.logpdf(MU, 0, 3).sum() + st.halfnorm.logpdf(SCALE) + np.log(SCALE)
    expected = prior + scipy.special.logsumexp(terms, axis=-1).sum(axis=1)
    np.testing.assert_allclose(jax.jit(jax.vmap(density))(jnp.asarray(ys)), expected, rtol=1e-5)


def test_values_of_a_count_come_from_its_support():
    @models.joint
    def counts(total):
        n = yield "n", Binomial(total, 0.4)
        yield "y", Normal(n.astype(jnp.float32), 1.0)

    posterior = counts(3).condition(y=1.5, marginalize="n")
    terms = st.binom.logpmf(np.arange(4), 3, 0.4) + st.norm.logpdf(1.5, np.arange(4))
    np.testing.assert_allclose(jax.jit(posterior.log_density)({}), scipy.special.logsumexp(terms), rtol=1e-5)
    # A total among the data is known as well, and each element may have its own.
    batch = counts(np.array([1, 3])).condition(y=[0.2, 1.5], marginalize="n")
    first = scipy.special.logsumexp(st.binom.logpmf([0, 1], 1, 0.4) + st.norm.logpdf(0.2, [0, 1]))
    value, gradient = jax.jit(jax.value_and_grad(lambda batch: batch.log_density({}), allow_int=True))(batch)
    np.testing.assert_allclose(value, first + scipy.special.logsumexp(terms), rtol=1e-5)
    assert np.isfinite(gradient.data["y"]).all()


def running(n):
    z = yield "z", Bernoulli(jnp.full(n, 0.3))
    yield "y", Normal(jnp.cumsum(z).astype(jnp.float32), 1.0)


def summed(n):
    z = yield "z", Bernoulli(jnp.full(n, 0.3))
    yield "y", Normal(jnp.sum(z).astype(jnp.float32), 1.0)


def changing_support(n):
    z = yield "z", Bernoulli(0.3)
    w = yield "w", Uniform(0.0, 1.0 + z.astype(jnp.float32))
    yield "y", Normal(jnp.full(n, w), 1.0)


def different_shapes(n):
    a = yield "a", Bernoulli(0.3)
    z = yield "z", Bernoulli(jnp.full(n, 0.3))
    yield "y", Normal((z + a).astype(jnp.float32), 1.0)


def observed_only(n):
    yield "y", Normal(jnp.zeros(n), 1.0)


@pytest.mark.parametrize(
    ("body", "names", "y", "pattern"),
    [
        (running, "z", np.zeros(4), "several of whose elements one of 'y' depends on"),
        (summed, "z", 1.0, r"'z' of shape \(4,\), while 'y' has log densities of shape \(\)"),
        (changing_support, "z", np.zeros(4), "on which the support of 'w' depends"),
        (different_shapes, ("a", "z"), np.zeros(4), r"'z' of shape \(4,\); expected \(\)"),
        (observed_only, "y", np.zeros(4), r"'y' \(observed, Normal\)"),
        (observed_only, "q", np.zeros(4), "'q', which does not exist"),
    ],
)
def test_what_cannot_be_summed_out(body, names, y, pattern):
    with pytest.raises(ValueError, match=f"condition: marginalize is .*{pattern}"):
        models.joint(body)(4).condition(y=y, marginalize=names)


def test_both_parts_of_a_log_density_have_the_group_summed_out():
    @models.joint
    def model(y):
        mu = yield "mu", Normal(jnp.zeros(3), 3.0)
        z = yield "z", Categorical(jnp.broadcast_to(jnp.asarray(WEIGHTS), (len(y), 3)))
        x = yield "x", Normal(mu[z], 1.0)  # a latent quantity that depends on what is summed out
        yield "y", Normal(x + z.astype(x.dtype), 0.5)

    posterior = model(Y).condition(y=Y, marginalize="z")
    x = np.array([0.3, 1.0, -0.5, 2.0])
    prior, likelihood = posterior.split_log_density({"mu": jnp.asarray(MU), "x": jnp.asarray(x)})
    latent = np.log(WEIGHTS) + st.norm.logpdf(x[:, None], MU, 1)
    whole = latent + st.norm.logpdf(Y[:, None], x[:, None] + np.arange(3), 0.5)
    before = scipy.special.logsumexp(latent, axis=1).sum()
    np.testing.assert_allclose(prior, st.norm.logpdf(MU, 0, 3).sum() + before, rtol=1e-5)
    np.testing.assert_allclose(likelihood, scipy.special.logsumexp(whole, axis=1).sum() - before, rtol=1e-5)


@pytest.mark.parametrize("summed", [(), ("z",)])
def test_log_probs_by_site_add_up_to_the_log_density(summed):
    @models.joint
    def program():
        scale = yield "scale", HalfNormal(1.0)
        z = yield "z", Bernoulli(0.3)
        yield "y", Normal(jnp.where(z == 1, 2.0, 0.0), scale)
        yield "w", Normal(0.0, scale)

    data = {"y": 1.5, "w": jnp.array(0.5)} | ({} if summed else {"z": 1})
    posterior = program().condition(marginalize=summed, **data)
    position = {"scale": jnp.array(0.3)}
    found = posterior.log_prob_by_site(position)
    scale = np.exp(0.3)
    # By hand: half normal with the log-determinant of exp, and what depends on z.
    half = st.halfnorm.logpdf(scale) + 0.3
    by_z = np.array([np.log(p) + st.norm.logpdf(1.5, mean, scale) for p, mean in ((0.7, 0.0), (0.3, 2.0))])
    np.testing.assert_allclose(found["scale"], half, rtol=1e-5)
    np.testing.assert_allclose(found["w"], st.norm.logpdf(0.5, 0, scale), rtol=1e-5)
    if summed:
        assert set(found) == {"scale", "w", "z"}
        np.testing.assert_allclose(found["z"], scipy.special.logsumexp(by_z), rtol=1e-5)
    else:
        assert set(found) == {"scale", "w", "z", "y"}
        np.testing.assert_allclose(found["z"] + found["y"], by_z[1], rtol=1e-5)
    np.testing.assert_allclose(sum(found.values()), posterior.log_density(position), rtol=1e-6)
