"""Convergence diagnostics against ArviZ's stored values, closed forms and simulation.

Most tests use arrays of one shape, so that each function is compiled once for each dtype.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import analysis
from jaxprob.analysis import _chains

SAME_SHAPE = (4, 400)
FUNCTIONS = {
    "r_hat": analysis.r_hat,
    "ess_bulk": analysis.effective_sample_size,
    "ess_tail": analysis.tail_effective_sample_size,
    "mcse_mean": analysis.mcse_mean,
    "mcse_sd": analysis.mcse_sd,
}


def stacked(arrays):
    """Names, and the arrays of the common shape along a trailing axis."""
    chosen = {name: x for name, x in arrays.chain_arrays().items() if x.shape == SAME_SHAPE}
    return list(chosen), np.stack(list(chosen.values()), axis=-1)


@pytest.fixture
def double(arrays, x64):
    names, x = stacked(arrays)
    return names, jnp.asarray(x)


def test_the_arrays_are_those_that_arviz_saw(arrays, reference):
    for name, x in arrays.chain_arrays().items():
        assert arrays.checksum(x) == pytest.approx(reference["chains"][name]["checksum"], rel=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float64_agrees_with_arviz(double, reference, function):
    names, x = double
    got = FUNCTIONS[function](x)
    assert got.dtype == jnp.float64
    want = [reference["chains"][name][function] for name in names]
    # ArviZ subtracts the plain mean of 1e6 + x, which costs it the last five digits.
    np.testing.assert_allclose(got, want, rtol=1e-10 if function[:4] != "mcse" else 1e-8)


def test_float64_quantile_errors_agree_with_arviz(double, arrays, reference):
    names, x = double
    for q in arrays.QUANTILES:
        want = [reference["chains"][name][f"mcse_quantile_{q}"] for name in names]
        np.testing.assert_allclose(analysis.mcse_quantile(x, q), want, rtol=1e-6)


def test_r_hat_differs_from_arviz_by_one_tie_only(double, reference):
    # ArviZ tells the two middle draws apart by the rounding of their median (see make_reference.py).
    names, x = double
    want = [reference["chains"][name]["r_hat_rounded"] for name in names]
    np.testing.assert_allclose(analysis.r_hat(x), want, rtol=3e-5)


def test_e_bfmi_agrees_with_arviz(double, reference):
    names, x = double
    got = np.asarray(analysis.e_bfmi(x))
    for name, fractions in zip(names, got.T, strict=True):
        np.testing.assert_allclose(fractions, reference["chains"][name]["e_bfmi"], rtol=1e-8, err_msg=name)


def test_float32_agrees_with_float64_on_the_same_numbers(arrays):
    _, x = stacked(arrays)
    x = x.astype(np.float32)
    single = {name: np.asarray(function(x)) for name, function in FUNCTIONS.items()}
    single["quantile"] = np.asarray(analysis.mcse_quantile(x, 0.05))
    single["e_bfmi"] = np.asarray(analysis.e_bfmi(x))
    with jax.enable_x64(True):
        exact = jnp.asarray(x, jnp.float64)
        double = {name: np.asarray(function(exact)) for name, function in FUNCTIONS.items()}
        double["quantile"] = np.asarray(analysis.mcse_quantile(exact, 0.05))
        double["e_bfmi"] = np.asarray(analysis.e_bfmi(exact))
    for name in single:
        assert single[name].dtype == np.float32
        # One order statistic more or less where the place of a quantile is nearly whole.
        np.testing.assert_allclose(single[name], double[name], rtol=0.05 if name == "quantile" else 1e-5, err_msg=name)


def autoregressive(rng, rho, chains, draws, repeats):
    x = np.empty((chains, draws, repeats), np.float32)
    x[:, 0] = rng.normal(size=(chains, repeats))
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=(chains, repeats))
    return x


def test_autoregressive_and_antithetic_chains(rng):
    """ESS / n is (1 - rho) / (1 + rho): below 1 for sticky chains and above 1 for antithetic ones."""
    rhos, repeats = (0.9, 0.5, 0.0, -0.3, -0.5), 40
    x = np.concatenate([autoregressive(rng, rho, 4, 1000, repeats) for rho in rhos], axis=2)
    table = analysis.summary(x)
    for rho, ratio in zip(rhos, table.ess_bulk.reshape(len(rhos), repeats) / 4000, strict=True):
        exact = (1 - rho) / (1 + rho)
        # Truncating the sum of autocorrelations at the first noisy pair biases the estimate by up to 4 % here. Each of
        # the five comparisons fails by chance with probability 6e-5 if the bias is no larger.
        error = ratio.std(ddof=1) / np.sqrt(repeats)
        assert abs(ratio.mean() - exact) < 4 * error + 0.04 * exact, (rho, ratio.mean(), exact)
    # An error of a mean is the spread of means over repetitions, 11 % uncertain with 40 repetitions: 3.5 of those.
    for estimate, claimed in ((x.mean(axis=(0, 1)), table.mcse_mean), (x.std(axis=(0, 1), ddof=1), table.mcse_sd)):
        spread = estimate.reshape(len(rhos), repeats).std(axis=1, ddof=1)
        np.testing.assert_allclose(claimed.reshape(len(rhos), repeats).mean(axis=1), spread, rtol=0.4)


def test_the_error_of_a_quantile_is_its_spread(rng):
    x = autoregressive(rng, 0.5, 4, 400, 56)
    claimed = np.concatenate([analysis.mcse_quantile(block, 0.05) for block in np.split(x, 4, axis=2)])
    spread = np.quantile(x, 0.05, axis=(0, 1)).std(ddof=1)
    np.testing.assert_allclose(claimed.mean(), spread, rtol=0.35)  # 56 repetitions: 9.5 % uncertain


@pytest.fixture
def single(rng):
    """Fourteen well-behaved quantities of the common shape, with different autocorrelations and chains apart."""
    x = np.concatenate([autoregressive(rng, rho, 4, 400, 2) for rho in (-0.5, 0, 0.3, 0.6, 0.9, 0.95, 0.99)], axis=2)
    x[0, :, ::3] += 1
    return x


def test_rank_based_diagnostics_see_ranks_only(single):
    monotone = np.arctan(single / 5) * np.float32(1e-15)
    for function in (analysis.effective_sample_size, analysis.tail_effective_sample_size):
        np.testing.assert_allclose(function(monotone), function(single), rtol=1e-5)
    np.testing.assert_allclose(analysis.r_hat(-single), analysis.r_hat(single), rtol=1e-6)
    np.testing.assert_allclose(analysis.r_hat(single[[2, 0, 3, 1]]), analysis.r_hat(single), rtol=1e-6)
    tiny = analysis.mcse_mean(np.float32(1e-30) * single)
    np.testing.assert_allclose(np.float64(tiny) * 1e30, analysis.mcse_mean(single), rtol=1e-5)


def test_ranks_share_ties(rng):
    x = np.concatenate([rng.poisson(3, size=30), [0.0, -0.0, -1.5, np.inf, -np.inf, 1e-30, -1e-30]]).astype(np.float32)
    rank = jax.jit(_chains.ranks)(x.reshape(1, -1))
    np.testing.assert_array_equal(rank[0], scipy.stats.rankdata(x))
    np.testing.assert_array_equal(jax.jit(_chains.ordered)(x), np.sort(x))
    scores = jax.jit(_chains.normal_scores)(rank)[0]
    want = scipy.stats.norm.ppf((scipy.stats.rankdata(x) - 3 / 8) / (len(x) + 1 / 4))
    np.testing.assert_allclose(scores, want, rtol=2e-6, atol=1e-6)


def test_quantiles_are_those_of_numpy(rng):
    for size in (4, 20, 21, 101, 4001):
        x = np.sort(rng.normal(size=size)).astype(np.float32)
        for p in (0.05, 0.055, 0.5, 0.945, 0.95):
            np.testing.assert_allclose(_chains.quantile(jnp.asarray(x), p), np.quantile(x, p), rtol=1e-5, atol=1e-6)
            below = _chains.below_quantile(jnp.asarray(x), jnp.asarray(x), p)
            # The quantile lies at order statistic (size - 1) p, counted from 0 and exact here.
            assert int(below.sum()) == int(Fraction(str(p)) * (size - 1)) + 1


SINGLE = {**FUNCTIONS, "quantile": lambda x: analysis.mcse_quantile(x, 0.05)}


def test_what_is_undefined_is_nan(single):
    x = single
    x[..., 0] = 0.1
    x[2, 7, 1] = np.nan
    x[1, 3, 2] = np.inf
    x[0, 0, 3] = -np.inf
    for name, function in SINGLE.items():
        assert np.isnan(function(x)).tolist() == [True] * 4 + [False] * 10, name
    energy = np.asarray(analysis.e_bfmi(x))
    assert energy.shape == (4, 14)
    assert np.isnan(energy).sum(axis=0).tolist() == [4, 1, 1, 1] + [0] * 10
    assert np.isnan(analysis.nested_r_hat(x, 2)).tolist() == [True] * 4 + [False] * 10


def test_stuck_chains_have_infinite_r_hat(single):
    single[..., 3] = np.array([0.1, 0.1, 0.7, 0.3])[:, None]
    assert analysis.r_hat(single)[3] == jnp.inf
    assert analysis.effective_sample_size(single)[3] < 10


@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (4, 0), (0, 10)])
def test_too_few_draws_are_nan(shape):
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    for name, function in SINGLE.items():
        assert jnp.isnan(function(x)), name
    assert jnp.isnan(analysis.e_bfmi(x)).all()


def test_shapes_and_dtypes():
    for function in SINGLE.values():
        for dtype, result in ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.int32, jnp.float32)):
            got = jax.eval_shape(function, jax.ShapeDtypeStruct((4, 50, 2, 3), dtype))
            assert (got.shape, got.dtype) == ((2, 3), result)
    assert jax.eval_shape(analysis.e_bfmi, jax.ShapeDtypeStruct((4, 50, 2, 3), jnp.float32)).shape == (4, 2, 3)
    assert analysis.r_hat(jnp.zeros((4, 20, 0))).shape == (0,)


def test_vmap_is_a_loop(single):
    batches = np.stack([single, single[::-1, ::-1] ** 3])
    mapped = jax.jit(jax.vmap(analysis.r_hat))(batches)
    np.testing.assert_allclose(mapped, np.stack([analysis.r_hat(batch) for batch in batches]), rtol=1e-6)


def nested_by_loops(x, labels):
    """Definition of nested R-hat, chain by chain, in float64."""
    means, spreads = [], []
    for label in sorted(set(labels)):
        group = [np.asarray(x[m], np.float64) for m in range(len(x)) if labels[m] == label]
        chain_means = [chain.mean() for chain in group]
        means.append(np.mean(chain_means))
        between = np.var(chain_means, ddof=1) if len(group) > 1 else 0.0
        within = np.mean([chain.var(ddof=1) for chain in group]) if len(group[0]) > 1 else 0.0
        spreads.append(between + within)
    return np.sqrt(1 + np.var(means, ddof=1) / np.mean(spreads))


@pytest.mark.parametrize(("chains", "draws", "groups"), [(12, 5, 3), (12, 1, 4), (6, 8, 6)])
def test_nested_r_hat_is_its_definition(rng, chains, draws, groups):
    x = (1e5 + rng.normal(size=(chains, draws)) + rng.normal(size=(chains, 1))).astype(np.float32)
    labels = np.repeat(np.arange(groups), chains // groups)
    np.testing.assert_allclose(analysis.nested_r_hat(x, groups), nested_by_loops(x, labels), rtol=1e-5)
    labels = rng.permutation(labels)
    np.testing.assert_allclose(analysis.nested_r_hat(x, labels), nested_by_loops(x, labels.tolist()), rtol=1e-5)


def test_nested_r_hat_finds_groups_that_forgot_nothing(rng):
    x = rng.normal(size=(64, 4)).astype(np.float32)
    assert analysis.nested_r_hat(x, 4) < 1.1
    assert analysis.nested_r_hat(x + 3 * np.repeat(np.arange(4.0, dtype=np.float32), 16)[:, None], 4) > 2


def test_bad_input_is_refused():
    x = jnp.zeros((6, 10))
    with pytest.raises(ValueError, match=r"^r_hat: x is a float32 array of shape \(10,\); expected an array \(chain"):
        analysis.r_hat(x[0])
    with pytest.raises(ValueError, match=r"^mcse_quantile: q is 1\.5; expected a probability"):
        analysis.mcse_quantile(x, 1.5)
    with pytest.raises(ValueError, match=r"^nested_r_hat: superchains is 4; expected 2 or more, and a divisor"):
        analysis.nested_r_hat(x, 4)
    with pytest.raises(ValueError, match=r"^nested_r_hat: superchains is labels .* groups of \[4, 2\]"):
        analysis.nested_r_hat(x, [0, 0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"^nested_r_hat: x is .*more than one draw in a superchain"):
        analysis.nested_r_hat(x[:, :1], 6)
