"""Density estimation: losses by SciPy, fits in closed form, data where a flow is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import core, scan
from jaxprob.distributions import Chain, Exp, Transformed, flows
from jaxprob.inference import vi

DATA = np.array([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.1], [0.9, 2.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_of_a_guide_and_of_a_flow(dtype, x64):
    guide = vi.mean_field(0.7).init(jax.random.key(0), {"a": jnp.zeros(1, dtype), "b": jnp.ones((), dtype)})
    data = jnp.asarray(DATA, dtype)
    expected = -scipy.stats.norm([0, 1], 0.7).logpdf(DATA).sum(axis=1).mean()
    found = {}
    for name, start, batch in (
        ("guide", guide, {"a": data[:, :1], "b": data[:, 1]}),
        ("flow", guide.distribution, data),
        ("function", lambda key: guide.distribution, data),
    ):
        objective = vi.maximum_likelihood(start)
        params = objective.init(jax.random.key(1))
        loss, metrics = jax.jit(objective.loss)(params, batch, jax.random.key(2))
        assert loss.dtype == dtype
        assert metrics["elbo"] == -loss
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        found[name] = params
    assert jax.tree.structure(found["flow"]) == jax.tree.structure(found["function"])


def test_a_fit_is_the_moments_of_the_data(rng):
    """A normal density of any covariance: means and covariances of the data, to 1 %."""
    data = jnp.asarray(rng.normal(size=(200, 2)) @ [[1.0, 0.5], [0.0, 0.7]] + [1.0, -2.0], jnp.float32)
    objective = vi.maximum_likelihood(vi.full_rank(1.0).init(jax.random.key(0), jnp.zeros(2)))
    init, step = vi.ascent(objective)
    start = init(objective.init(jax.random.key(1)), jax.random.key(2))

    @jax.jit
    def run(state, data):
        keyed = lambda state, index: step(core.fold(jax.random.key(3), index), state, data)[0]  # noqa: E731
        return scan.repeat(keyed, state, 1500)

    guide = run(start, data).position
    draws = np.asarray(guide.sample(jax.random.key(4), 100_000))
    np.testing.assert_allclose(draws.mean(axis=0), data.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(data.T, bias=True), atol=0.03)


def test_conditional_flows_take_pairs():
    """The mean over a batch of pairs is that of single examples."""
    flow = flows.affine_coupling(2, (8,)).init(jax.random.key(0), 2, context_size=1)
    xs, contexts = jnp.asarray(DATA, jnp.float32), jnp.asarray([[0.0], [1.0], [-1.0], [0.5]])
    objective = vi.maximum_likelihood(flow)
    loss, _ = objective.loss(objective.init(jax.random.key(1)), (xs, contexts), jax.random.key(2))
    single = [-flow.given(context).log_prob(x) for x, context in zip(xs, contexts, strict=True)]
    np.testing.assert_allclose(loss, np.mean(single), rtol=1e-5)
    with pytest.raises(ValueError, match=r"maximum_likelihood: batch is .*; expected a pair \(draws, contexts\)"):
        objective.loss(flow, xs, jax.random.key(2))


def test_data_outside_of_the_support():
    guide = vi.mean_field(1.0).init(jax.random.key(0), jnp.zeros(2))
    flow = guide.distribution
    positive = Transformed(flow.base, Chain((flow.bijector, Exp())))
    cases = [
        (
            positive,
            DATA,
            r"batch is with 2 draws that the density is not for, the first batch\[0\]; expected .* in its support",
        ),
        (flow, np.array([[0.0, 1.0], [np.nan, 0.0]]), r"the first batch\[1\]; expected draws that are in its support"),
        (guide, np.array([[0.0, 1.0], [0.0, np.inf]]), r"the first batch\[1\]; expected draws that are finite"),
        (guide, np.zeros((0, 2)), r"batch is .*; expected draws \(example, ...\), one at least"),
    ]
    for start, data, message in cases:
        objective = vi.maximum_likelihood(start)
        data = jnp.asarray(data, jnp.float32)
        with pytest.raises(ValueError, match=message) as raised:
            objective.loss(start, data, jax.random.key(0))
        assert "\n" not in str(raised.value)
        with pytest.raises(ValueError, match=message):  # where only parameters are traced
            jax.grad(lambda p, o=objective, d=data: o.loss(p, d, jax.random.key(0))[0])(start)
    # Known to no one under `jit`: not finite, so that no step is taken.
    loss = jax.jit(vi.maximum_likelihood(positive).loss)(positive, jnp.asarray(DATA, jnp.float32), jax.random.key(0))[0]
    assert loss == jnp.inf
    vi.maximum_likelihood(positive).loss(positive, jnp.exp(jnp.asarray(DATA, jnp.float32)), jax.random.key(0))


def test_what_is_no_density():
    with pytest.raises(TypeError, match="maximum_likelihood: start is 3; expected a flow"):
        vi.maximum_likelihood(3)
    objective = vi.maximum_likelihood(lambda key: jnp.zeros(3))
    with pytest.raises(TypeError, match="maximum_likelihood: params is .*; expected a flow or a guide"):
        objective.loss(objective.init(jax.random.key(0)), jnp.zeros((2, 3)), jax.random.key(0))
