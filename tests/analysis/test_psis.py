"""Pareto smoothing, LOO and WAIC against ArviZ's stored values, closed forms and exact leave-one-out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import analysis


@pytest.mark.parametrize("name", ["light", "normal", "heavy", "very_heavy", "bounded", "far", "small"])
def test_psis_agrees_with_arviz(arrays, reference, name):
    ratios = arrays.ratio_arrays()[name]
    for r_eff in (1.0, 0.5) if name == "heavy" else (1.0,):
        want = reference["ratios"][f"{name}/{r_eff}"]
        assert arrays.checksum(ratios) == pytest.approx(want["checksum"], rel=1e-12)
        with jax.enable_x64(True):
            log_weights, k = analysis.psis(jnp.asarray(ratios), r_eff)
        log_weights = np.asarray(log_weights)
        assert log_weights.dtype == np.float64
        np.testing.assert_allclose(k, want["k"], rtol=1e-10)
        np.testing.assert_allclose(np.sort(log_weights)[-5:], want["largest"], rtol=1e-10)
        np.testing.assert_allclose(np.sum(np.exp(2 * log_weights)), want["sum_of_squares"], rtol=1e-10)
        np.testing.assert_allclose(np.sum(log_weights), want["sum_of_logs"], rtol=1e-10)


def test_psis_in_float32_and_in_batches(arrays, reference):
    ratios = arrays.ratio_arrays()
    both = np.stack([ratios["heavy"], ratios["very_heavy"]], axis=1).astype(np.float32)
    log_weights, k = jax.jit(analysis.psis)(both, jnp.array([1.0, 0.5]))
    assert log_weights.dtype == k.dtype == np.float32
    assert log_weights.shape == (1000, 2)
    for j, name in enumerate(("heavy/1.0", "very_heavy/0.5")):
        np.testing.assert_allclose(k[j], reference["ratios"][name]["k"], rtol=1e-4)
        np.testing.assert_allclose(np.sort(log_weights[:, j])[-5:], reference["ratios"][name]["largest"], atol=1e-4)
    np.testing.assert_allclose(np.exp(np.asarray(log_weights)).sum(axis=0), 1, rtol=1e-5)


def test_k_is_the_shape_of_the_tail(rng):
    """Ratios with a generalised Pareto tail of shape k; k's estimate has sd of about (1 + k) / sqrt(tail)."""
    shapes = np.array([0.1, 0.5, 0.9])
    ratios = np.log(scipy.stats.genpareto.rvs(shapes, size=(20_000, 3), random_state=rng)).astype(np.float32)
    k = np.asarray(analysis.psis(ratios).pareto_k)
    tail = 3 * np.sqrt(20_000)
    shrunk = (tail * shapes + 5) / (tail + 10)
    assert np.all(np.abs(k - shrunk) < 4 * (1 + shapes) / np.sqrt(tail)), k


def test_smoothing_changes_only_the_tail_and_keeps_its_order(arrays):
    ratios = arrays.ratio_arrays()["heavy"].astype(np.float32)
    log_weights = np.asarray(analysis.psis(ratios).log_weights)
    order = np.argsort(ratios)
    body = order[: 1000 - 95 - 1]
    shift = log_weights[body] - ratios[body]
    np.testing.assert_allclose(shift, shift[0], atol=1e-5)
    assert np.all(np.diff(log_weights[order]) > -1e-5)


def test_psis_at_the_edges():
    normal = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    normal[:, 0] = 3.0
    normal[4, 1] = np.nan
    normal[4, 2] = np.inf
    normal[:, 3] = -np.inf
    normal[:20, 4] = -np.inf
    log_weights, k = analysis.psis(normal)
    np.testing.assert_allclose(log_weights[:, 0], -np.log(30), rtol=1e-6)
    assert k[0] == -jnp.inf
    assert np.isnan(k[1:4]).all()
    assert np.isnan(log_weights[:, 1:4]).all()
    assert np.isfinite(k[4:]).all()
    assert np.exp(log_weights[:20, 4]).sum() == 0
    few = analysis.psis(normal[:10, 5])
    assert few.pareto_k == jnp.inf
    np.testing.assert_allclose(few.log_weights, normal[:10, 5] - scipy.special.logsumexp(normal[:10, 5]), rtol=1e-5)
    with pytest.raises(ValueError, match=r"^psis: r_eff is a float32 array of shape \(2,\); expected a number or"):
        analysis.psis(normal, jnp.ones(2))
    with pytest.raises(ValueError, match=r"^psis: log_ratios is .*at least one sample"):
        analysis.psis(jnp.zeros((0, 3)))


def test_thresholds():
    assert analysis.psis_threshold(100) == 0.5
    assert analysis.psis_threshold(10**6) == 0.7


def test_loo_and_waic_agree_with_arviz(arrays, reference, x64):
    log_likelihood = jnp.asarray(arrays.log_likelihood_array())
    want = reference["elpd"]
    assert arrays.checksum(log_likelihood) == pytest.approx(want["checksum"], rel=1e-12)
    result = analysis.loo(log_likelihood, r_eff=0.7)
    np.testing.assert_allclose([result.elpd, result.se, result.p, result.threshold], want["loo"], rtol=1e-10)
    np.testing.assert_allclose(result.pointwise, want["loo_pointwise"], rtol=1e-10)
    np.testing.assert_allclose(result.pareto_k, want["pareto_k"], rtol=1e-9)
    result = analysis.waic(log_likelihood)
    np.testing.assert_allclose([result.elpd, result.se, result.p], want["waic"], rtol=1e-10)
    np.testing.assert_allclose(result.pointwise, want["waic_pointwise"], rtol=1e-10)


def normal_model(rng, y, draws, rho=0.0):
    """Exact posterior draws of the mean of N(mu, 1) data with a flat prior, and the log likelihoods."""
    z = rng.normal(size=(4, draws, 1))
    for t in range(1, draws):
        z[:, t] = rho * z[:, t - 1] + np.sqrt(1 - rho**2) * z[:, t]
    return scipy.stats.norm.logpdf(y, y.mean() + z / np.sqrt(len(y))).astype(np.float32)


def test_loo_takes_the_efficiency_from_the_draws(rng):
    log_likelihood = normal_model(rng, rng.normal(size=40), 1000, rho=0.8)
    result = analysis.loo(log_likelihood)
    assert {leaf.dtype for leaf in result} == {np.dtype(np.float32)}
    likelihood = np.exp(log_likelihood)
    # mcse_mean is sd / sqrt(ess), which gives the ESS back.
    r_eff = likelihood.var(axis=(0, 1), ddof=1) / np.asarray(analysis.mcse_mean(likelihood)) ** 2 / 4000
    assert np.all(r_eff < 0.6)
    again = analysis.loo(log_likelihood, r_eff=r_eff.astype(np.float32))
    np.testing.assert_allclose(result.pareto_k, again.pareto_k, atol=0.02)
    np.testing.assert_allclose(result.elpd, again.elpd, rtol=1e-5)
    assert np.max(np.abs(result.pareto_k - analysis.loo(log_likelihood, r_eff=1.0).pareto_k)) > 0.05
    inside_jit = jax.eval_shape(jax.jit(analysis.loo), log_likelihood)
    assert [leaf.shape for leaf in inside_jit] == [leaf.shape for leaf in result]


def test_loo_is_exact_leave_one_out(rng):
    """Without observation i the predictive distribution is N(mean of the others, 1 + 1 / (n - 1)), exactly."""
    y = rng.normal(size=40)
    log_likelihood = normal_model(rng, y, 1000)
    others = (y.sum() - y) / 39
    exact = scipy.stats.norm.logpdf(y, others, np.sqrt(1 + 1 / 39))
    result = analysis.loo(log_likelihood)
    assert np.all(result.pareto_k <= result.threshold)
    # sd of each term over draws is about 0.16 |y| / sqrt(4000), far below 0.02, where a sign error makes 0.1.
    np.testing.assert_allclose(result.pointwise, exact, atol=0.02)
    assert abs(float(result.elpd) - exact.sum()) < 0.05
    exact_p = np.sum(scipy.stats.norm.logpdf(y, y.mean(), np.sqrt(1 + 1 / 40)) - exact)
    assert abs(float(result.p) - exact_p) < 0.05
    waic = analysis.waic(log_likelihood)
    assert abs(float(waic.elpd) - exact.sum()) < 0.1
    text = str(result)
    assert text.startswith(f"Leave-one-out: elpd {float(result.elpd):.1f} (standard error ")
    assert "Every Pareto k is at most 0.70: the estimate can be trusted." in text
    assert "Warning" not in str(waic)


def test_an_influential_observation_is_named(rng):
    y = rng.normal(size=40)
    y[17] = 30.0
    log_likelihood = normal_model(rng, y, 1000)
    result = analysis.loo(log_likelihood)
    assert int(np.argmax(result.pareto_k)) == 17
    text = str(result)
    assert "Warning: Pareto k is above 0.70 for 1 of 40 observations (largest" in text
    assert "at [17])" in text
    assert "Warning: the posterior variance of the log likelihood is above 0.4 for 1 of 40" in str(
        analysis.waic(log_likelihood)
    )


def test_compare(rng):
    y = rng.normal(size=40)
    good = analysis.loo(normal_model(rng, y, 1000))
    shifted = analysis.loo(normal_model(rng, y, 1000) - np.linspace(0, 1, 40, dtype=np.float32))
    table = analysis.compare({"shifted": shifted, "good": good})
    assert table.names == ("good", "shifted")
    paired = np.asarray(shifted.pointwise, np.float64) - np.asarray(good.pointwise, np.float64)
    np.testing.assert_allclose(table.difference, [0, paired.sum()], rtol=1e-6)
    np.testing.assert_allclose(table.difference_se, [0, np.sqrt(40) * paired.std()], rtol=1e-6)
    assert table.unreliable.tolist() == [0, 0]
    lines = str(table).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("good ")
    assert len(set(map(len, lines))) == 1
    with pytest.raises(ValueError, match="^compare: models is 1 of them; expected at least two"):
        analysis.compare({"good": good})
    fewer = good._replace(pointwise=good.pointwise[:3])
    with pytest.raises(ValueError, match=r"models\['b'\] is about observations of shape \(3,\); expected \(40,\)"):
        analysis.compare({"a": good, "b": fewer})
    waic = analysis.waic(normal_model(rng, y, 1000))
    with pytest.raises(ValueError, match=r"models\['b'\] is a Waic; expected a Loo"):
        analysis.compare({"a": good, "b": waic})


def test_summed_log_likelihoods_are_refused():
    for function in (analysis.loo, analysis.waic):
        with pytest.raises(
            ValueError, match=r"expected an array \(chain, draw, ...\) with an entry for each observation"
        ):
            function(jnp.zeros((4, 100)))
