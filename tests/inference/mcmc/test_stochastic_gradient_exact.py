"""Stochastic-gradient kernels step by step: against NumPy, against exact stationary variances, in cycles, on real data.

On a Gaussian target a step is linear in the state and in its noise. The two matrices are read off the kernel itself,
and the stationary covariance that they have is exact: no chance is in the tests of bias.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import jaxprob
from jaxprob import core
from jaxprob.inference import mcmc

KERNELS = [mcmc.sgld, mcmc.psgld, mcmc.sghmc, mcmc.sgnht]
COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])


def key(seed=0):
    return jax.random.key(seed)


def noisy(k, q):
    """A gradient with noise, of a curved density on two leaves."""
    a, b = jax.random.normal(k, (3,), q["b"].dtype)[:2], jax.random.normal(core.fold(k, 1), (), q["b"].dtype)
    return {"a": -(q["a"] ** 3) + a, "b": q["a"][0] - q["b"] + b}


POSITION = {"a": np.array([0.7, -1.2]), "b": np.array(0.4)}


def as_vector(q):
    return np.append(np.asarray(q["a"]), np.asarray(q["b"]))


def as_position(x):
    return {"a": jnp.asarray(x[:2]), "b": jnp.asarray(x[2])}


def numbers(k):
    """What a step draws: the gradient at a vector, and normal numbers."""
    for_gradient, for_noise = jax.random.split(k)
    noise = np.asarray(jax.random.normal(for_noise, (3,), jnp.float64))
    return (lambda x: as_vector(noisy(jax.random.clone(for_gradient), as_position(x)))), noise


def test_sgld_by_hand(x64):
    step, heat, root = 0.3, 0.7, np.linalg.cholesky(COVARIANCE)
    algorithm = mcmc.sgld(noisy, step, COVARIANCE, temperature=heat)
    state = algorithm.init(jax.tree.map(jnp.asarray, POSITION), key())
    after, info = algorithm.step(key(1), state)
    gradient, z = numbers(key(1))
    g = as_vector(noisy(key(), as_position(as_vector(POSITION))))
    expected = as_vector(POSITION) + step / 2 * COVARIANCE @ g + np.sqrt(step * heat) * root @ z
    np.testing.assert_allclose(as_vector(after.position), expected, rtol=1e-12)
    np.testing.assert_allclose(after.gradient, gradient(expected), rtol=1e-12)
    np.testing.assert_allclose(info.gradient_norm, np.linalg.norm(gradient(expected)), rtol=1e-12)
    assert (float(info.step_size), float(info.temperature), bool(info.diverging)) == (step, heat, False)
    assert int(after.transitions) == 1


def test_psgld_by_hand(x64):
    step, decay, damping = 0.3, 0.9, 1e-2
    algorithm = mcmc.psgld(noisy, step, decay=decay, damping=damping)
    state = algorithm.init(jax.tree.map(jnp.asarray, POSITION), key())
    x, squares, g = as_vector(POSITION), np.zeros(3), as_vector(noisy(key(), as_position(as_vector(POSITION))))
    for t in range(1, 4):
        state, _ = algorithm.step(key(t), state)
        gradient, z = numbers(key(t))
        squares = decay * squares + (1 - decay) * g**2
        scale = 1 / (damping + np.sqrt(squares / (1 - decay**t)))
        x = x + step / 2 * scale * g + np.sqrt(step * scale) * z
        g = gradient(x)
        np.testing.assert_allclose(as_vector(state.position), x, rtol=1e-11)
    np.testing.assert_allclose(state.mean_square, squares, rtol=1e-11)


def test_sghmc_by_hand(x64):
    step, friction, told, root = 0.3, 1.3, 0.5, np.linalg.cholesky(COVARIANCE)
    algorithm = mcmc.sghmc(noisy, step, COVARIANCE, friction=friction, gradient_variance=told)
    state = algorithm.init(jax.tree.map(jnp.asarray, POSITION), key())
    x, p = as_vector(POSITION), np.asarray(state.momentum)
    for t in range(1, 4):
        state, info = algorithm.step(key(t), state)
        gradient, z = numbers(key(t))
        x = x + step / 2 * root @ p
        force = root.T @ gradient(x)
        kept = np.exp(-friction * step)
        added = 1 - kept**2 - (step / 2 * (1 + kept)) ** 2 * told
        p = kept * (p + step / 2 * force) + np.sqrt(added) * z + step / 2 * force
        x = x + step / 2 * root @ p
        np.testing.assert_allclose(as_vector(state.position), x, rtol=1e-11)
        np.testing.assert_allclose(state.momentum, p, rtol=1e-11)
        np.testing.assert_allclose(info.kinetic_temperature, np.mean(p**2), rtol=1e-11)
    # Chen, Fox & Guestrin's noise, 2 (C - B) e with B = e V / 2, is its leading order.
    e = 1e-4
    kept = np.exp(-friction * e)
    exact = 1 - kept**2 - (e / 2 * (1 + kept)) ** 2 * told
    assert abs(exact / (2 * (friction - e * told / 2) * e) - 1) < 2e-4


def test_sgnht_by_hand(x64):
    step, strength = 0.3, 0.8
    algorithm = mcmc.sgnht(noisy, step, friction=strength)
    state = algorithm.init(jax.tree.map(jnp.asarray, POSITION), key())
    x, p, xi = as_vector(POSITION), np.asarray(state.momentum), strength
    for t in range(1, 4):
        state, info = algorithm.step(key(t), state)
        gradient, z = numbers(key(t))
        x = x + step / 2 * p
        g = gradient(x)
        p = p + step / 2 * g
        xi = xi + step / 2 * (np.mean(p**2) - 1)
        p = np.exp(-xi * step) * p + np.sqrt(strength * (1 - np.exp(-2 * xi * step)) / xi) * z
        xi = xi + step / 2 * (np.mean(p**2) - 1)
        p = p + step / 2 * g
        x = x + step / 2 * p
        np.testing.assert_allclose(as_vector(state.position), x, rtol=1e-10)
        np.testing.assert_allclose(state.momentum, p, rtol=1e-10)
        np.testing.assert_allclose(state.thermostat, xi, rtol=1e-10)
    assert float(info.friction) == float(state.thermostat)


def stationary(build, scale, variance, momentum):
    """The exact stationary covariance of a kernel on N(0, scale^2), with noise of a variance in its gradient."""

    def after(values, noise):
        """One step with the same random numbers, whatever the state and the gradient's noise."""
        algorithm = build(lambda k, q: -q / scale**2 + noise)
        state = algorithm.init(jnp.asarray(values[0]), key())
        if momentum:
            state = state._replace(momentum=jnp.asarray(values[1:]))
        new, _ = algorithm.step(key(1), state)
        return np.append(float(new.position), np.asarray(new.momentum) if momentum else [])

    size = 1 + momentum
    zero = np.zeros(size)
    nothing = after(zero, 0.0)
    normal = float(jax.random.normal(jax.random.split(key(1))[1], (1,), jnp.float64)[0])
    transition = np.stack([after(row, 0.0) - nothing for row in np.eye(size)], axis=1)
    columns = np.stack([nothing / normal, np.sqrt(variance) * (after(zero, 1.0) - nothing)], axis=1)
    return scipy.linalg.solve_discrete_lyapunov(transition, columns @ columns.T)


def test_the_stationary_variance_of_sgld(x64):
    for step, scale, variance in ((0.5, 1.5, 0.0), (2.0, 1.5, 3.0), (0.1, 0.3, 40.0)):
        found = stationary(lambda g, step=step: mcmc.sgld(g, step), scale, variance, 0)[0, 0]
        expected = scale**2 / (1 - step / (4 * scale**2)) * (1 + step * variance / 4)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_stationary_variance_of_sghmc(x64):
    """Positions of a Gaussian have no bias, momenta one of second order; noise not told of has one of first order."""
    friction, variance, scale = 1.5, 6.0, 1.5

    def bias(step, noise, told):
        options = {"friction": friction, "gradient_variance": told}
        return np.diag(stationary(lambda g: mcmc.sghmc(g, step, **options), scale, noise, 1)) / [scale**2, 1] - 1

    for noise in (0.0, variance):
        errors = np.array([bias(step, noise, noise) for step in (0.2, 0.1, 0.05)])
        np.testing.assert_allclose(errors[:, 0], 0, atol=1e-12)
        np.testing.assert_allclose(errors[:-1, 1] / errors[1:, 1], 4, rtol=0.02)
        assert errors[0, 1] > 1e-3
    for step in (0.2, 0.05, 0.01):
        np.testing.assert_allclose(bias(step, variance, 0.0)[0], step * variance / (2 * friction), rtol=0.2 * step)


@pytest.mark.parametrize("kernel", [mcmc.sghmc, mcmc.sgnht])
def test_the_bias_on_a_curved_target_is_of_second_order(kernel):
    """The variance of cosh(x)^-2 is pi^2 / 12: its error falls fourfold with half the step."""
    truth = np.pi**2 / 12

    def run(step):
        algorithm = kernel(lambda k, q: -2 * jnp.tanh(q), step)

        @jax.jit
        @jax.vmap
        def chain(k):
            def go(index, carry):
                state, total = carry
                state, _ = algorithm.step(core.fold(k, index), state)
                return state, total + jnp.where(index >= 200, jnp.mean(state.position**2), 0.0)

            state = algorithm.init(jnp.zeros(4), core.fold(k, 2**31))
            return jax.lax.fori_loop(0, 8200, go, (state, jnp.float32(0)))[1] / 8000

        of_chains = np.asarray(chain(jax.random.split(key(6), 1000)), float)
        return of_chains.mean() - truth, of_chains.std() / np.sqrt(1000)

    (large, of_large), (small, of_small) = run(0.6), run(0.3)
    assert large > 20 * of_large
    # The next order lets the ratio be 3 to 6; for a method of first order it would be 2. False alarm 6e-7 each.
    assert large - 3 * small > -5 * np.hypot(of_large, 3 * of_small)
    assert large - 6 * small < 5 * np.hypot(of_large, 6 * of_small)


def test_a_subset_of_all_rows_is_exact(x64, rng):
    rows = jnp.asarray(rng.normal(size=6))
    parts = (lambda q: -0.5 * q**2, lambda q, row: -jnp.cosh(row - q), rows)
    whole = mcmc.full_gradient(lambda q: parts[0](q) + jnp.sum(jax.vmap(lambda row: parts[1](q, row))(rows)))
    q = jnp.float64(0.4)
    for estimator in (
        mcmc.minibatch_gradient(*parts, 6, replace=False),
        mcmc.control_variate_gradient(*parts, 6, jnp.float64(-1.0), replace=False),
    ):
        np.testing.assert_allclose(estimator(key(3), q), whole(key(4), q), rtol=1e-12)
    # A subset's noise is that of independent rows times (N - n) / (N - 1).
    spreads = []
    for replace in (True, False):
        estimator = mcmc.minibatch_gradient(*parts, 3, replace=replace)
        spreads.append(np.var(jax.vmap(lambda k, e=estimator: e(k, q))(jax.random.split(key(5), 20_000))))
    assert abs(spreads[1] / spreads[0] - 3 / 5) < 5 * 0.6 * np.sqrt(4 / 20_000)  # false alarm 6e-7


def test_schedules_by_their_formulas(x64):
    times = np.arange(25)
    cosine = jax.vmap(mcmc.cosine_schedule(0.2, 10))(jnp.asarray(times))
    np.testing.assert_allclose(cosine, 0.1 * (np.cos(np.pi * (times % 10) / 10) + 1), rtol=1e-6)
    assert (np.asarray(cosine) > 0).all()
    power = jax.vmap(mcmc.polynomial_schedule(0.2, 5.0, 0.6))(jnp.asarray(times))
    np.testing.assert_allclose(power, 0.2 * (1 + times / 5) ** -0.6, rtol=1e-6)

    @jax.jit
    def traced(size, length, t):
        return mcmc.cosine_schedule(size, length)(t)

    np.testing.assert_allclose(traced(0.2, 10, 13), cosine[13], rtol=1e-6)
    algorithm = mcmc.sghmc(lambda k, q: -q, mcmc.polynomial_schedule(0.2, 5.0, 0.6))
    state = algorithm.init(jnp.ones(2), key())
    for t in range(4):
        state, info = algorithm.step(key(t + 1), state)
        np.testing.assert_allclose(float(info.step_size), power[t], rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_cycle_climbs_and_then_samples(kernel):
    algorithm = mcmc.cyclical(kernel, lambda k, q: -q, 0.1, 8, exploration_fraction=0.5)
    state = algorithm.init(jnp.ones(2), key())
    step = jax.jit(algorithm.step)
    for t in range(16):
        (one, info), (two, _) = step(key(2 * t + 1), state), step(key(2 * t + 2), state)
        assert float(info.temperature) == (0.0 if t % 8 < 4 else 1.0)
        alike = np.array_equal(one.position, two.position)
        assert alike == (t % 8 < 4), t  # no noise while it climbs
        np.testing.assert_allclose(float(info.step_size), 0.05 * (np.cos(np.pi * (t % 8) / 8) + 1), rtol=1e-5)
        state = one


def test_cycles_find_both_modes_where_the_same_budget_at_one_small_step_does_not():
    def gradient(k, q):
        return jax.grad(lambda q: jnp.sum(jnp.logaddexp(-0.5 * (q - 4) ** 2, -0.5 * (q + 4) ** 2)))(q)

    def run(kernel):
        @jax.jit
        @jax.vmap
        def chain(k):
            def step(state, index):
                state, info = kernel.step(core.fold(k, index + 1), state)
                return state, (state.position[0], info.temperature > 0)

            return jax.lax.scan(step, kernel.init(jnp.full(1, 4.0), core.fold(k, 0)), jnp.arange(4000))[1]

        return map(np.asarray, chain(jax.random.split(key(2), 64)))

    # At the beginning of a cycle the law of the draws is broad, with variance 1 / (1 - 3.8 / 4) around each mode.
    draws, kept = run(mcmc.cyclical(mcmc.sgld, gradient, 3.8, 100, exploration_fraction=0.1))
    assert kept.mean() == pytest.approx(0.9)
    late = draws.reshape(64, -1, 100)[:, :, 80:]
    assert np.mean(np.abs(np.abs(late) - 4) < 3) > 0.98
    left = np.mean(late < 0, axis=(1, 2))
    assert np.all((left > 0) & (left < 1))
    assert abs(left.mean() - 0.5) < 5.5 * left.std() / 8  # false alarm 7e-7
    assert left.std() < 0.3
    draws, kept = run(mcmc.sgld(gradient, 0.05))
    assert kept.all()
    assert np.mean(draws.min(axis=1) > 0) > 0.8


@pytest.mark.parametrize("kernel", KERNELS)
def test_jit_and_vmap_change_nothing_and_step_sizes_may_be_traced(kernel):
    gradient = mcmc.minibatch_gradient(
        lambda q: -0.5 * jnp.sum(q**2), lambda q, row: -0.5 * jnp.sum((row - q) ** 2), jnp.arange(12.0).reshape(6, 2), 3
    )

    def two(k, size, position):
        algorithm = kernel(gradient, size)
        state, _ = algorithm.step(core.fold(k, 1), algorithm.init(position, core.fold(k, 0)))
        return algorithm.step(core.fold(k, 2), state)

    sizes, positions = jnp.array([0.01, 0.02, 0.05]), jnp.arange(6.0).reshape(3, 2)
    together = jax.jit(jax.vmap(two))(jax.random.split(key(), 3), sizes, positions)
    keys = jax.random.split(key(), 3)
    for index in range(3):
        alone = two(keys[index], sizes[index], positions[index])
        for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one[index], other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_costs_one_gradient(kernel):
    count = 0

    def gradient(k, q):
        def add():
            nonlocal count
            count += 1

        jax.debug.callback(add)
        return -q

    algorithm = kernel(gradient, 0.1)
    state = algorithm.init(jnp.ones(2), key())
    jax.effects_barrier()
    count = 0
    step = jax.jit(algorithm.step)
    for t in range(5):
        state, _ = step(key(t + 1), state)
    jax.effects_barrier()
    assert count == 5


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_finite_is_skipped_and_said_so(kernel):
    """Beyond 1 the gradient is NaN: moves there are skipped, a momentum is turned round, and a chain goes on."""
    algorithm = kernel(lambda k, q: jnp.where(q > 1, jnp.nan, -q), 0.3)

    @jax.jit
    def run(k):
        def step(state, index):
            new, info = algorithm.step(core.fold(k, index), state)
            return new, (state, new, info)

        return jax.lax.scan(step, algorithm.init(jnp.zeros(1), core.fold(k, 2**31)), jnp.arange(2000))[1]

    before, after, info = run(key(1))
    skipped = np.asarray(info.diverging)
    assert 20 < skipped.sum() < 1000
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(after))
    np.testing.assert_array_equal(after.position[skipped], before.position[skipped])
    np.testing.assert_array_equal(after.transitions, np.arange(2000) + 1)
    if not hasattr(after, "momentum"):  # where there is one, the gradient is taken halfway
        assert np.max(after.position) <= 1
    norms = np.asarray(info.gradient_norm)
    assert np.isinf(norms[skipped]).all()
    assert np.isfinite(norms[~skipped]).all()
    if hasattr(after, "momentum"):
        np.testing.assert_array_equal(after.momentum[skipped], -before.momentum[skipped])
        assert np.isfinite(np.asarray(info.kinetic_temperature)).all()


def test_logistic_regression_on_breast_cancer_against_nuts():
    """Mean within 0.1 standard deviations and variances within a quarter of a long run of NUTS (system S300)."""
    found = pytest.importorskip("sklearn.datasets").load_breast_cancer()
    x = (found.data - found.data.mean(axis=0)) / found.data.std(axis=0)
    x, y = np.concatenate([np.ones((len(x), 1)), x], axis=1), 2.0 * found.target - 1
    size = x.shape[1]
    mode = np.zeros(size)
    for _ in range(30):  # Newton's method
        p = 1 / (1 + np.exp(-y * (x @ mode)))
        precision = np.eye(size) + (x * (p * (1 - p))[:, None]).T @ x
        mode = mode + np.linalg.solve(precision, x.T @ (y * (1 - p)) - mode)
    covariance = np.linalg.inv(precision)
    rows = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def log_prior(q):
        return -0.5 * jnp.sum(q * q)

    def log_likelihood(q, row):
        return jax.nn.log_sigmoid(row[1] * jnp.sum(q * row[0]))

    def log_density(q):
        return log_prior(q) + jnp.sum(jax.vmap(log_likelihood, (None, 0))(q, rows))

    metric, centre = jnp.asarray(covariance, jnp.float32), jnp.asarray(mode, jnp.float32)
    nuts = mcmc.nuts(log_density, 0.5, metric)
    run = jaxprob.sample(log_density, key(0), initial=centre, algorithm=nuts, chains=4, draws=2500)
    exact = np.asarray(run.draws, float)[:, 100:].reshape(-1, size)
    gradient = mcmc.control_variate_gradient(log_prior, log_likelihood, rows, 64, centre)
    algorithm = mcmc.sghmc(gradient, 0.1, metric, friction=2.0)

    @jax.jit
    @jax.vmap
    def chain(k):
        def many(state, index):
            state = jax.lax.fori_loop(0, 50, lambda i, s: algorithm.step(core.fold(k, index, i), s)[0], state)
            return state, state.position

        state = algorithm.init(centre, core.fold(k, 2**31))
        return jax.lax.scan(many, state, jnp.arange(40))[1][5:]

    draws = np.asarray(chain(jax.random.split(key(1), 64)), float).reshape(-1, size)
    sd = exact.std(axis=0)
    assert np.max(np.abs(draws.mean(axis=0) - exact.mean(axis=0)) / sd) < 0.1
    ratio = draws.var(axis=0) / sd**2
    assert 0.8 < ratio.min() < ratio.max() < 1.25


def test_bad_input_is_one_line():
    def gradient(k, q):
        return -q

    rows = jnp.ones((4, 2))
    parts = (lambda q: -jnp.sum(q**2), lambda q, row: -jnp.sum((q - row) ** 2))
    start = jnp.ones(2)

    def step(algorithm):
        return algorithm.step(key(1), algorithm.init(start, key()))

    for call, error, words in (
        (lambda: mcmc.sghmc(None), TypeError, "sghmc: gradient is None; expected a function of a key and a position"),
        (lambda: mcmc.sgld(gradient, -1.0), ValueError, "sgld: step_size is -1.0"),
        (lambda: mcmc.sgld(gradient, 0.1, temperature=-1.0), ValueError, "sgld: temperature is -1.0"),
        (lambda: mcmc.psgld(gradient, decay=1.0), ValueError, "psgld: decay is 1.0"),
        (lambda: mcmc.psgld(gradient, damping=0.0), ValueError, "psgld: damping is 0.0"),
        (lambda: mcmc.sgnht(gradient, friction=0.0), ValueError, "sgnht: friction is 0.0"),
        (lambda: mcmc.sghmc(gradient, gradient_variance=jnp.ones((2, 2))), ValueError, "sghmc: gradient_variance is"),
        (lambda: step(mcmc.sghmc(gradient, gradient_variance=jnp.ones(3))), ValueError, "sghmc: gradient_variance is"),
        (lambda: step(mcmc.sgld(gradient, 0.1, jnp.ones(3))), ValueError, "sgld: inverse_mass_matrix is"),
        (lambda: step(mcmc.sgld(lambda k, q: q[:1])), ValueError, "sgld: the gradient"),
        (lambda: step(mcmc.sgnht(lambda k, q: {"q": q})), ValueError, "sgnht: the gradient"),
        (lambda: mcmc.cosine_schedule(0.1, 2.5), ValueError, "cosine_schedule: cycle_length is 2.5"),
        (lambda: mcmc.cosine_schedule(0.1, 0), ValueError, "cosine_schedule: cycle_length is"),
        (lambda: mcmc.polynomial_schedule(0.1, delay=0.0), ValueError, "polynomial_schedule: delay is 0.0"),
        (
            lambda: mcmc.cyclical(mcmc.sgld, gradient, 0.1, 10, exploration_fraction=1.0),
            ValueError,
            "cyclical: exploration_fraction is 1.0",
        ),
        (lambda: mcmc.full_gradient(3), TypeError, "full_gradient: log_density is 3"),
        (lambda: mcmc.minibatch_gradient(3, parts[1], rows, 2), TypeError, "minibatch_gradient: log_prior is 3"),
        (lambda: mcmc.minibatch_gradient(*parts, {}, 2), ValueError, "minibatch_gradient: data is empty"),
        (lambda: mcmc.minibatch_gradient(*parts, (rows, jnp.ones(3)), 2), ValueError, "minibatch_gradient: data is"),
        (lambda: mcmc.minibatch_gradient(*parts, rows, 0), ValueError, "minibatch_gradient: batch_size is 0"),
        (
            lambda: mcmc.minibatch_gradient(parts[0], lambda q, row: q - row, rows, 2)(key(), start),
            ValueError,
            "minibatch_gradient: the value of log_likelihood is of shape",
        ),
        (
            lambda: mcmc.minibatch_gradient(lambda q: q, parts[1], rows, 2)(key(), start),
            ValueError,
            "minibatch_gradient: the value of log_prior is of shape",
        ),
        (
            lambda: mcmc.control_variate_gradient(*parts, rows, 2, jnp.ones(2))(key(), {"q": start}),
            ValueError,
            "control_variate_gradient: position",
        ),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
