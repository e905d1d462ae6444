"""Online statistics against NumPy in float64 on the whole series, and the same bits however a run is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.analysis import online

BATCHES = 32


@jax.jit
def absorb(state, block):
    """Adds a block (chain, draw, size)."""
    return jax.lax.scan(lambda state, draw: (online.add(state, draw), None), state, jnp.swapaxes(block, 0, 1))[0]


def autoregressive(rng, rho, chains, draws, size):
    x = np.empty((chains, draws, size))
    x[:, 0] = rng.normal(size=(chains, size))
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=(chains, size))
    return x


def length_of_batches(draws):
    length = 1
    while draws > BATCHES * length:
        length *= 2
    return length


def split_r_hat(x, length):
    """Classic R-hat of the first and last halves of the full batches, chain by chain."""
    full = x.shape[1] // length
    n = (full // 2) * length
    halves = np.concatenate([x[:, :n], x[:, full * length - n : full * length]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    return np.sqrt((n - 1) / n + halves.mean(axis=1).var(axis=0, ddof=1) / within)


def batch_means_ess(x, length):
    """n var(x) over the largest of length * var(batch means).

    Lengths that leave fewer than 32 batches (other than the first) count less by three standard errors of a variance.
    """
    chains, draws, _ = x.shape
    full = draws // length
    largest, longest = 0.0, 0
    for level in range(6):
        size, number = length * 2**level, full // 2**level
        groups = chains * number
        if groups < 2:
            break
        means = x[:, : number * size].reshape(chains, number, size, -1).mean(axis=2).reshape(groups, -1)
        enough = groups >= 32 or level == 0
        largest = np.maximum(
            largest, size * means.var(axis=0, ddof=1) / (1 if enough else 1 + 3 * np.sqrt(2 / (groups - 1)))
        )
        longest = size if enough else longest
    result = chains * draws * x.var(axis=(0, 1), ddof=1) / largest
    return result if longest >= 4 else np.zeros_like(result)


@pytest.mark.parametrize("chains", [1, 4])
def test_every_statistic_at_every_stage(rng, chains):
    x = (1e6 + autoregressive(rng, 0.7, chains, 1200, 3)).astype(np.float32)
    exact = x.astype(np.float64)
    state, done = online.init(x[:, 0]), 0
    for draws in (4, 16, 32, 36, 64, 68, 200, 1200):
        while done < draws:
            state, done = absorb(state, x[:, done : done + 4]), done + 4
        seen = exact[:, :draws]
        length = length_of_batches(draws)
        assert (int(state.draws), int(state.length)) == (draws, length)
        np.testing.assert_allclose(online.mean(state), seen.mean(axis=(0, 1)), rtol=6e-8)
        np.testing.assert_allclose(online.variance(state), seen.var(axis=(0, 1), ddof=1), rtol=1e-5)
        np.testing.assert_allclose(online.r_hat(state), split_r_hat(seen, length), rtol=1e-5)
        np.testing.assert_allclose(online.effective_sample_size(state), batch_means_ess(seen, length), rtol=1e-4)


def test_the_same_bits_however_the_run_is_cut(rng):
    x = autoregressive(rng, 0.5, 2, 300, 5).astype(np.float32)
    whole = absorb(online.init(x[:, 0]), x)
    for cuts in ([1, 2, 3], [31, 32, 33], [299]):
        state = online.init(x[:, 0])
        for block in np.split(x, cuts, axis=1):
            state = absorb(state, block)
        for got, want in zip(state, whole, strict=True):
            np.testing.assert_array_equal(got, want)


def test_memory_does_not_grow(rng):
    state = online.init(jnp.zeros((4, 7)))
    after = jax.eval_shape(absorb, state, jax.ShapeDtypeStruct((4, 100_000, 7), jnp.float32))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


def test_effective_sample_size_is_about_right(rng):
    """Against (1 - rho) / (1 + rho): within 15 % on the average of 40 quantities, which it varies by 3 % over."""
    rhos = (-0.5, 0.0, 0.5, 0.9)
    x = np.concatenate([autoregressive(rng, rho, 4, 3000, 40) for rho in rhos], axis=2).astype(np.float32)
    got = np.asarray(online.effective_sample_size(absorb(online.init(x[:, 0]), x))).reshape(4, 40)
    for rho, ess in zip(rhos, got, strict=True):
        exact = 12_000 * (1 - rho) / (1 + rho)
        assert abs(ess.mean() / exact - 1) < 0.15, (rho, ess.mean() / exact)


def test_chains_apart_are_seen(rng):
    x = rng.normal(size=(4, 200, 2)).astype(np.float32)
    x[3, :, 1] += 3
    state = absorb(online.init(x[:, 0]), x)
    assert online.r_hat(state)[0] < 1.05
    assert online.r_hat(state)[1] > 1.3
    assert online.effective_sample_size(state)[1] < 40


def test_a_first_draw_far_out_does_no_harm(rng):
    x = rng.normal(size=(3, 500, 2)).astype(np.float32)
    x[:, 0] = 1e4
    exact = x.astype(np.float64)
    state = absorb(online.init(x[:, 0]), x)
    np.testing.assert_allclose(online.mean(state), exact.mean(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(online.variance(state), exact.var(axis=(0, 1), ddof=1), rtol=1e-4)


def test_what_is_not_known_meets_no_stopping_rule():
    """NaN for what is constant; otherwise what is unknown has no effective draw and an infinite R-hat."""
    state = online.init(jnp.zeros((2, 3)))
    assert jnp.isnan(online.mean(state)).all()
    assert jnp.isnan(online.variance(state)).all()
    add = jax.jit(online.add)
    for draws in range(100):
        if draws in (0, 3):
            np.testing.assert_array_equal(online.r_hat(state), np.inf)
            np.testing.assert_array_equal(online.effective_sample_size(state), 0)
        state = add(state, jnp.full((2, 3), 0.1))
    np.testing.assert_array_equal(online.mean(state), np.full(3, 0.1, np.float32))
    np.testing.assert_array_equal(online.variance(state), np.zeros(3))
    assert jnp.isnan(online.r_hat(state)).all()
    assert jnp.isnan(online.effective_sample_size(state)).all()
    broken = add(state, jnp.array([[jnp.nan, 0.1, 0.1], [0.1, 0.1, 0.2]]))
    for _ in range(60):
        broken = add(broken, jnp.full((2, 3), 0.1))
    assert jnp.isnan(online.mean(broken)).tolist() == [True, False, False]
    assert jnp.isnan(online.variance(broken)).tolist() == [True, False, False]
    assert online.r_hat(broken)[0] == jnp.inf
    assert online.effective_sample_size(broken)[0] == 0
    assert jnp.isnan(online.r_hat(broken)[1])
    assert online.effective_sample_size(broken)[2] > 0


def test_dtypes_and_shapes(x64):
    assert online.init(jnp.zeros((2, 3), jnp.float32)).mean.dtype == jnp.float32
    assert online.init(jnp.zeros((2, 3))).mean.dtype == jnp.float64
    low = online.add(online.init(jnp.zeros((2, 3), jnp.bfloat16)), jnp.ones((2, 3), jnp.bfloat16))
    assert low.mean.dtype == jnp.float32
    assert online.mean(low).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"^online.init: draw is .*expected an array \(chain, size\)"):
        online.init(jnp.zeros(3))
    with pytest.raises(
        ValueError, match=r"^online.add: draw is a float64 array of shape \(3, 2\); .* of shape \(2, 3\)"
    ):
        online.add(online.init(jnp.zeros((2, 3))), jnp.zeros((3, 2)))


def test_chains_may_be_sharded(rng):
    """Inside shard_map each device holds its own chains; no draw has to be sent anywhere."""
    x = rng.normal(size=(4, 70, 2)).astype(np.float32)
    mesh = jax.make_mesh((4,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    chains, shared = jax.P("chains"), jax.P()
    specs = online.State(shared, shared, chains, chains, chains)
    sharded = jax.jit(jax.shard_map(absorb, mesh=mesh, in_specs=(specs, chains), out_specs=specs))
    state = online.init(x[:, 0])
    program = sharded.lower(state, x).compile().as_text()
    assert "all-reduce" not in program
    assert "all-gather" not in program
    got, want = sharded(state, x), absorb(state, x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
