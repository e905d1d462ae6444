"""Samplers of Gaussian processes with the exact score of a mixture, which comes from derivatives of its density."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import diffusion as inference
from jaxprob.models import diffusion
from tests.models.diffusion import _mixture_oracles as oracles

COUNT = 4000

PROCESSES = {
    "preserving": diffusion.variance_preserving(prediction="v"),
    "exploding": diffusion.variance_exploding(),
    "sub_preserving": diffusion.sub_variance_preserving(),
    "flow_matching": diffusion.flow_matching(),
    "elucidated": diffusion.elucidated(),
    "linear_beta": diffusion.variance_preserving(diffusion.linear_beta(), "score"),
    "bayesian_flow": diffusion.bayesian_flow(),
}

# Of noise scales from 0.01 to 49.4, for the errors of steps.
GEOMETRIC = diffusion.variance_exploding(diffusion.log_linear(9.2, -7.8))

# Each with as many steps as leave errors below those of 4000 draws.
SOLVERS = {
    "ancestral": inference.ancestral(200),
    "ddim": inference.ddim(100),
    "ddim_half": inference.ddim(100, 0.5),
    "euler": inference.euler(100),
    "heun": inference.heun(15),
    "adaptive": inference.adaptive(1e-4),
    "dpm_solver_2": inference.dpm_solver(20),
    "dpm_solver_3": inference.dpm_solver(20, order=3),
    "euler_maruyama": inference.euler_maruyama(500),
    "sde_dpm_solver": inference.sde_dpm_solver(60),
    "predictor_corrector": inference.predictor_corrector(150, 2),
    "annealed_langevin": inference.annealed_langevin(150, 20),
}


@functools.cache
def exact(name):
    """The denoiser of the mixture by automatic derivatives."""
    process = GEOMETRIC if name == "geometric" else PROCESSES[name]

    def denoiser(x, t, condition):
        alpha, sigma = process.scales(t)
        alpha, sigma = alpha.astype(x.dtype), sigma.astype(x.dtype)
        return process.from_noise(-sigma * oracles.score(x, alpha, sigma), x, t)

    return denoiser


def energy_distance(x, y):
    def mean(a, b):
        squares = np.sum(a**2, 1)[:, None] + np.sum(b**2, 1) - 2 * a @ b.T
        return np.mean(np.sqrt(np.maximum(squares, 0)))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


# Grids whose first steps are long take more steps of a method that extrapolates; or another grid, where the first step
# even in time is from no signal to a log ratio of -1.
FINER = {
    **{
        (name, f"dpm_solver_{order}"): inference.dpm_solver(40, order)
        for name, order in itertools.product(("exploding", "elucidated"), (2, 3))
    },
    ("bayesian_flow", "ancestral"): inference.ancestral(200, "log_ratio"),
    ("bayesian_flow", "ddim"): inference.ddim(100, 0.0, "log_ratio"),
    ("bayesian_flow", "ddim_half"): inference.ddim(100, 0.5, "log_ratio"),
    ("bayesian_flow", "dpm_solver_2"): inference.dpm_solver(40, 2, "log_ratio"),
    ("bayesian_flow", "dpm_solver_3"): inference.dpm_solver(40, 3, "log_ratio"),
    ("bayesian_flow", "predictor_corrector"): inference.predictor_corrector(150, 2, grid="log_ratio"),
}
QUICK = ("preserving", "heun"), ("preserving", "sde_dpm_solver")


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow)
        for pair in itertools.product(PROCESSES, SOLVERS)
    ],
)
def test_the_law_of_data_is_recovered(name, solver):
    """Of every process by every solver, with the schedules and grids that they have by default."""
    chosen = FINER.get((name, solver), SOLVERS[solver])
    draws = inference.sample(jax.random.key(7), PROCESSES[name], exact(name), (COUNT, 2), solver=chosen)
    draws = np.asarray(draws, float)
    truth = oracles.draw(np.random.default_rng(0), 100_000)
    # Means of eight functions against many draws; a false alarm is beyond four standard errors, about 5e-4 a solver.
    features = [lambda x: x, lambda x: x**2, lambda x: x[:, :1] * x, lambda x: (x > 0).astype(float)]
    got, true = (np.concatenate([feature(x) for feature in features], 1) for x in (draws, truth))
    error = np.sqrt(got.var(0) / COUNT + true.var(0) / len(true))
    # Langevin dynamics leaves the share of modes to the first levels, and steps are too wide by a few percent.
    bias = 0.03 if solver == "annealed_langevin" else 0.004
    assert np.all(np.abs(got.mean(0) - true.mean(0)) < 4 * error + bias), (got.mean(0) - true.mean(0)) / error
    # Of two sets of 1000 true draws it was 0.0026 on average, and above 0.021 in none of 400; of 4000, a quarter of it.
    assert energy_distance(draws, truth[:COUNT]) < 0.008


def error_of(solver, reference, start):
    drawn = inference.sample(jax.random.key(0), GEOMETRIC, exact("geometric"), start.shape, solver=solver, start=start)
    return float(jnp.sqrt(jnp.mean((drawn - reference) ** 2)))


@pytest.fixture(scope="module")
def paths():
    """Noise and where the probability-flow equation takes it, by steps with errors of 1e-9."""
    with jax.enable_x64(True):
        start = 49.402449105530174 * jax.random.normal(jax.random.key(1), (64, 2), jnp.float64)
        solver = inference.adaptive(1e-9, 5000)
        return start, inference.sample(
            jax.random.key(0), GEOMETRIC, exact("geometric"), (64, 2), solver=solver, start=start
        )


@pytest.mark.parametrize(
    ("make", "order", "smallest"),
    [
        (inference.ddim, 1, 2.5e-2),
        (inference.euler, 1, 1e-2),
        (inference.heun, 2, 1e-3),
        (inference.dpm_solver, 2, 1e-3),
        (functools.partial(inference.dpm_solver, order=3), 3, 2e-4),
    ],
)
def test_halving_steps_divides_the_error_by_two_to_the_order(x64, paths, make, order, smallest):
    start, reference = paths
    coarse, fine = (error_of(make(steps), reference, start) for steps in (60, 120))
    assert abs(np.log2(coarse / fine) - order) < 0.2
    assert coarse < smallest


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_heun_needs_few_steps_whatever_the_process(name):
    """The equation is the same in the coordinates of the angle, with grids that differ."""
    process = PROCESSES[name]
    start = float(process.scales(1.0)[1]) * jax.random.normal(jax.random.key(2), (64, 2))
    run = functools.partial(inference.sample, jax.random.key(0), process, exact(name), (64, 2), start=start)
    # The first step even in time of a Bayesian flow is from no signal to a log ratio of 0.
    grid = "log_ratio" if name == "bayesian_flow" else "time"
    error = run(solver=inference.heun(30, grid)) - run(solver=inference.adaptive(1e-6))
    assert float(jnp.sqrt(jnp.mean(error**2))) < 6e-3


@pytest.mark.parametrize(
    "name", ["preserving", *(pytest.param(n, marks=pytest.mark.slow) for n in PROCESSES if n != "preserving")]
)
def test_every_solver_is_finite_in_float32_from_noise_to_data(name):
    process = PROCESSES[name]
    denoiser = diffusion.gaussian_mixture_denoiser(process, oracles.WEIGHTS, oracles.MEANS, oracles.COVARIANCES)
    few = (
        *(inference.ancestral(4), inference.ddim(4), inference.ddim(4, 0.5), inference.euler(4), inference.heun(4)),
        *(inference.dpm_solver(4, order) for order in (1, 2, 3)),
        *(inference.dpm_solver(4, 3, grid) for grid in ("log_ratio", "karras")),
        *(inference.euler_maruyama(20), inference.sde_dpm_solver(4), inference.predictor_corrector(4)),
        *(inference.annealed_langevin(4, 2), inference.adaptive(1e-2)),
    )

    @jax.jit
    def ends(key):
        key, start = jax.random.split(key)
        drawn = []
        for index, solver in enumerate(few):
            algorithm = solver.algorithm(process, denoiser, (2,))

            def one(i, state, algorithm=algorithm):
                return algorithm.step(jax.random.fold_in(key, i), state)[0]

            drawn.append(
                jax.lax.fori_loop(0, solver.steps, one, algorithm.init(None, jax.random.fold_in(start, index))).position
            )
        return drawn

    for solver, x in zip(few, jax.vmap(ends)(jax.random.split(jax.random.key(0), 16)), strict=True):
        assert x.dtype == jnp.float32
        assert np.isfinite(x).all(), solver.name
        # Four steps are few, but data are within 3. Langevin dynamics needs more to lose earlier noise.
        assert np.abs(x).max() < 30 or solver.name == "diffusion.annealed_langevin", solver.name


def test_solvers_that_are_the_same_draw_the_same():
    run = functools.partial(inference.sample, jax.random.key(3), PROCESSES["preserving"], exact("preserving"), (8, 2))
    first = run(solver=inference.ddim(8, grid="time"))
    np.testing.assert_allclose(run(solver=inference.dpm_solver(8, 1, "time")), first, atol=2e-5)
    first = run(solver=inference.ancestral(8, "log_ratio"))
    np.testing.assert_allclose(run(solver=inference.ddim(8, 1.0, "log_ratio")), first, atol=1e-6)
    np.testing.assert_allclose(run(solver=inference.sde_dpm_solver(8, 1, "log_ratio")), first, atol=2e-5)


def test_data_of_unit_variance_need_no_steps_in_the_coordinates_of_the_angle():
    process = diffusion.variance_exploding(diffusion.log_linear(15.0, -15.0), "clean")

    def denoiser(x, t, condition):
        return x / (1 + jnp.exp(-process.log_ratio(t)).astype(x.dtype))

    start = jnp.exp(7.5) * jnp.array([[1.0, -2.0]])
    for solver in (inference.euler(1), inference.heun(3, "karras")):
        drawn = inference.sample(jax.random.key(0), process, denoiser, (1, 2), solver=solver, start=start)
        np.testing.assert_allclose(drawn, [[1.0, -2.0]], rtol=1e-3)


def test_levels_of_langevin_dynamics_differ_by_a_scale():
    process = diffusion.variance_preserving(diffusion.log_linear(3.0, -3.0))
    algorithm = inference.annealed_langevin(1, 1, 1e-12).algorithm(process, lambda x, t, condition: x, (1,))
    state = algorithm.step(jax.random.key(1), algorithm.init(jnp.ones(1), jax.random.key(0)))[0]
    before, after = (oracles.scales("preserving", level)[0] for level in (-3.0, 3.0))
    np.testing.assert_allclose(state.position, [after / before], rtol=1e-4)


def test_adaptive_says_whether_it_came_to_the_end():
    process, start = PROCESSES["flow_matching"], jnp.array([0.4, -1.0])

    def run(tolerance, max_steps):
        solver = inference.adaptive(tolerance, max_steps)
        algorithm = solver.algorithm(process, exact("flow_matching"), (2,))
        state = algorithm.init(start, jax.random.key(0))
        assert not state.memory.reached
        return jax.jit(algorithm.step)(jax.random.key(0), state)

    state, info = run(1e-3, 1000)
    assert state.memory.reached
    assert info.time == 0
    assert info.evaluations == state.memory.evaluations
    assert 20 < int(info.evaluations) < 300
    finer, more = run(1e-6, 1000)
    assert more.evaluations > info.evaluations
    assert 0 < np.abs(finer.position - state.position).max() < 1e-2
    # As many steps as were needed are enough, and one less is not.
    needed = (int(info.evaluations) - 1) // 6
    again, _ = run(1e-3, needed)
    np.testing.assert_array_equal(again.position, state.position)
    short, _ = run(1e-3, needed - 1)
    assert not short.memory.reached
    assert np.isnan(short.position).all()


def test_a_denoiser_that_is_not_a_number_ends_and_is_told():
    drawn = inference.sample(
        jax.random.key(0),
        PROCESSES["preserving"],
        lambda x, t, condition: x * jnp.nan,
        (2, 2),
        solver=inference.adaptive(1e-3, 30),
    )
    assert np.isnan(drawn).all()


@pytest.mark.parametrize("solver", [inference.heun(8), inference.sde_dpm_solver(8), inference.predictor_corrector(8)])
def test_correlated_noise_is_white_noise_in_other_coordinates(solver):
    from tests.models.diffusion.test_gaussian import Correlated

    factor = jnp.array([[1.0, 0.0], [0.7, 0.5]])
    shaped = diffusion.variance_preserving(noise=Correlated(factor))
    white = diffusion.variance_preserving()
    inverse = np.linalg.inv(np.asarray(factor))
    covariances = inverse @ oracles.COVARIANCES @ inverse.T
    denoisers = (
        diffusion.gaussian_mixture_denoiser(shaped, oracles.WEIGHTS, oracles.MEANS, oracles.COVARIANCES),
        diffusion.gaussian_mixture_denoiser(white, oracles.WEIGHTS, oracles.MEANS @ inverse.T, covariances),
    )
    one, two = (
        inference.sample(jax.random.key(5), process, denoiser, (16, 2), solver=solver)
        for process, denoiser in zip((shaped, white), denoisers, strict=True)
    )
    np.testing.assert_allclose(one, two @ factor.T, atol=1e-4)


def test_dtype_of_the_start_is_kept(x64):
    for solver in (
        inference.heun(3),
        inference.dpm_solver(3, 3),
        inference.adaptive(1e-2),
        inference.euler_maruyama(9),
    ):
        for dtype in (jnp.float32, jnp.float64):
            denoiser = diffusion.gaussian_mixture_denoiser(
                PROCESSES["preserving"], oracles.WEIGHTS, oracles.MEANS, oracles.COVARIANCES
            )
            start = jnp.ones((1, 2), dtype)
            drawn = inference.sample(
                jax.random.key(0), PROCESSES["preserving"], denoiser, (1, 2), solver=solver, start=start
            )
            assert drawn.dtype == dtype


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inference.ddim(0), "steps is 0"),
        (lambda: inference.ddim(5, 1.5), "randomness is 1.5"),
        (lambda: inference.euler(2.5), "steps is 2.5"),
        (lambda: inference.heun(5, "linear"), "grid is 'linear'"),
        (lambda: inference.dpm_solver(5, 4), "order is 4"),
        (lambda: inference.sde_dpm_solver(5, 3), "order is 3"),
        (lambda: inference.adaptive(0.0), "tolerance is 0.0"),
        (lambda: inference.adaptive(1e-3, 0), "max_steps is 0"),
        (lambda: inference.euler_maruyama(-1), "steps is -1"),
        (lambda: inference.predictor_corrector(5, 0), "corrections is 0"),
        (lambda: inference.predictor_corrector(5, 1, -0.1), "signal_to_noise is -0.1"),
        (lambda: inference.annealed_langevin(0), "levels is 0"),
        (lambda: inference.annealed_langevin(5, 1, 0.0), "step_size is 0.0"),
    ],
)
def test_wrong_arguments_are_told(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_other_processes_are_told():
    process = diffusion.masked(3)
    for solver in (inference.ddim(3), inference.heun(3), inference.dpm_solver(3), inference.annealed_langevin(3)):
        with pytest.raises(TypeError, match="is for Gaussian"):
            inference.sample(jax.random.key(0), process, lambda x, t, condition: x, (2, 2), solver=solver)


@pytest.mark.parametrize("solver", [inference.dpm_solver(6, 3), inference.sde_dpm_solver(6)])
def test_two_steps_at_one_time_divide_by_nothing(solver, monkeypatch):
    """Next to time 1 levels may lie closer than float32 tells times apart."""
    times = jnp.array([1.0, 1.0, 0.8, 0.5, 0.5, 0.2, 0.0])
    monkeypatch.setattr(type(solver), "times", lambda self, process: times)
    process = PROCESSES["preserving"]
    denoiser = diffusion.gaussian_mixture_denoiser(process, oracles.WEIGHTS, oracles.MEANS, oracles.COVARIANCES)
    algorithm = solver.algorithm(process, denoiser, (2,))
    state, step = algorithm.init(jnp.array([0.5, -1.0]), jax.random.key(0)), jax.jit(algorithm.step)
    for i in range(6):
        state, _ = step(jax.random.key(i), state)
    assert np.isfinite(state.position).all()
    assert np.abs(state.position).max() < 4
