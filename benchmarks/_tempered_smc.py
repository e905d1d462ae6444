"""Adaptive tempered sequential Monte Carlo beside BlackJAX's: the models of the MCMC benchmark, with proper priors.

Both have the same number of particles, go on where the effective sample size is one half of them, and move them by
Hamiltonian Monte Carlo with a metric of their variances. BlackJAX's `inner_kernel_tuning` is the form its documentation
has for that; it tunes no step size and takes a number of moves, so it is given the step size that ours begins with.
"""

from __future__ import annotations

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxprob import models
from jaxprob.distributions import Bernoulli, HalfCauchy, HalfNormal, LogNormal, MultivariateNormal, Normal, Poisson
from jaxprob.inference import smc

LEAPFROGS, MOVES = 4, 10


@models.joint
def linear(x, prior_scale, noise):
    beta = yield "beta", Normal(jnp.zeros(x.shape[1]), prior_scale)
    yield "y", Normal(jnp.matmul(x, beta, precision="highest"), noise)


def regression_design(rng):
    return rng.normal(size=(30, 10)) * np.linspace(0.5, 2, 10)


def regression_10():
    rng = np.random.default_rng(0)
    x = regression_design(rng)
    y = x @ rng.normal(size=10) + 0.5 * rng.normal(size=30)
    exact = stats.multivariate_normal(cov=x @ x.T + 0.25 * np.eye(30)).logpdf(y)
    return linear(jnp.asarray(x, jnp.float32), 1.0, 0.5).condition(y=y.astype(np.float32)), exact


def gaussian_100():
    """Seen through a rotation, with noise from 0.1 to 10, from a prior of standard deviation 10."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    x = rotation / np.geomspace(0.1, 10, 100)[:, None]
    y = x @ (10 * rng.normal(size=100)) + rng.normal(size=100)
    exact = stats.multivariate_normal(cov=100 * x @ x.T + np.eye(100)).logpdf(y)
    return linear(jnp.asarray(x, jnp.float32), 10.0, 1.0).condition(y=y.astype(np.float32)), exact


@models.joint
def logistic(x):
    beta = yield "beta", Normal(jnp.zeros(x.shape[1]), 1.0)
    yield "y", Bernoulli(logits=jnp.matmul(x, beta, precision="highest"))


def logistic_31():
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    columns = (data.data - data.data.mean(0)) / data.data.std(0)
    x = jnp.asarray(np.c_[np.ones(len(columns)), columns], jnp.float32)
    return logistic(x).condition(y=data.target), None


SIGMA, EFFECTS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18]), np.array([28.0, 8, -3, 7, -1, 1, 18, 12])


@models.joint
def schools(sigma, centred):
    mu = yield "mu", Normal(0.0, 5.0)
    tau = yield "tau", HalfCauchy(5.0)
    theta = yield "theta", Normal(jnp.full(8, mu), tau) if centred else Normal(jnp.zeros(8), 1.0)
    yield "y", Normal(theta if centred else mu + tau * theta, sigma)


def eight_schools(centred):
    return schools(jnp.asarray(SIGMA, jnp.float32), centred).condition(y=EFFECTS), None


@models.joint
def counties(log_population):
    mu = yield "mu", Normal(-6.0, 2.0)
    tau = yield "tau", HalfNormal(0.5)
    offset = yield "offset", Normal(jnp.zeros(len(log_population)), 1.0)
    yield "cases", Poisson(jnp.exp(log_population + mu + tau * offset))


def cancer_noncentred():
    import statsmodels.api as sm

    data = sm.datasets.cancer.load_pandas().data
    log_population = jnp.asarray(np.log(data.population.to_numpy()), jnp.float32)
    return counties(log_population).condition(cases=data.cancer.to_numpy()), None


@models.joint
def answers(persons, items, centred):
    ability = yield "ability", Normal(jnp.zeros(persons), 1.0)
    discrimination = yield "discrimination", LogNormal(jnp.zeros(items), 0.5)
    spread = yield "spread", HalfNormal(2.0)
    difficulty = yield "difficulty", Normal(jnp.zeros(items), spread if centred else 1.0)
    difficulty = difficulty if centred else spread * difficulty
    apart = jnp.expand_dims(ability, 1) - jnp.expand_dims(difficulty, 0)
    yield "y", Bernoulli(logits=jnp.expand_dims(discrimination, 0) * apart)


def item_response(centred=True):
    rng = np.random.default_rng(1)
    ability, discrimination, difficulty = rng.normal(size=100), np.exp(0.4 * rng.normal(size=20)), rng.normal(size=20)
    chance = 1 / (1 + np.exp(-discrimination * (ability[:, None] - difficulty)))
    return answers(100, 20, centred).condition(y=(rng.uniform(size=chance.shape) < chance).astype(int)), None


@models.joint
def process(squares):
    number = squares.shape[0]
    rho = yield "rho", LogNormal(1.0, 0.5)
    alpha = yield "alpha", LogNormal(0.0, 0.5)
    sigma = yield "sigma", LogNormal(-1.0, 1.0)
    kernel = alpha**2 * jnp.exp(-0.5 * squares / rho**2) + (sigma**2 + 1e-4) * jnp.eye(number, dtype=squares.dtype)
    yield "y", MultivariateNormal(jnp.zeros(number), covariance=kernel)


def gaussian_process():
    import statsmodels.api as sm

    spots = sm.datasets.sunspots.load_pandas().data.SUNACTIVITY.to_numpy()[-60:]
    squares = jnp.asarray((np.arange(60.0)[:, None] - np.arange(60.0)) ** 2, jnp.float32)
    return process(squares).condition(y=(spots - spots.mean()) / spots.std()), None


MODELS = {
    "regression_10": regression_10,
    "gaussian_100": gaussian_100,
    "logistic_31": logistic_31,
    "eight_schools_centred": functools.partial(eight_schools, True),
    "eight_schools_noncentred": functools.partial(eight_schools, False),
    "cancer_noncentred": cancer_noncentred,
    "item_response": item_response,
    "gaussian_process": gaussian_process,
}


def reference_of(name):
    """What the reference is run on, `position -> position of the model`, and the evidence where it is known.

    A funnel mixes too slowly to be a reference for itself: it is run without, and its particles are put back into it.
    """
    if name == "eight_schools_centred":
        posterior, exact = eight_schools(False)

        def back(position):
            tau = posterior.constrain(position)["tau"]
            return position | {"theta": position["mu"] + tau * position["theta"]}

        return posterior, back, exact
    if name == "item_response":
        posterior, exact = item_response(centred=False)

        def back(position):
            return position | {"difficulty": posterior.constrain(position)["spread"] * position["difficulty"]}

        return posterior, back, exact
    posterior, exact = MODELS[name]()
    return posterior, lambda position: position, exact


def ours(posterior, number, **options):
    algorithm = smc.tempered(posterior, particles=number, **options)

    @jax.jit
    def run(key):
        found = smc.run_sampler(key, algorithm, max_steps=200)
        return found.state.position, found.state.log_evidence, found.num_steps, jnp.sum(found.info.num_moves)

    return run


def blackjaxs(posterior, number):
    import blackjax
    from blackjax.smc import extend_params, resampling
    from blackjax.smc.tuning.from_particles import inverse_mass_matrix_from_particles

    def log_prior(position):
        return posterior.split_log_density(position)[0]

    def log_likelihood(position):
        return posterior.split_log_density(position)[1]

    step_size = posterior.dim**-0.25

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 3)
        particles = jax.vmap(posterior.sample_prior)(jax.random.split(keys[0], number))
        parameters = {
            "step_size": jnp.float32(step_size),
            "inverse_mass_matrix": inverse_mass_matrix_from_particles(particles),
            "num_integration_steps": LEAPFROGS,
        }

        def tuned(key, state, info):
            metric = inverse_mass_matrix_from_particles(state.particles)
            return extend_params(parameters | {"inverse_mass_matrix": metric})

        algorithm = blackjax.inner_kernel_tuning(
            smc_algorithm=blackjax.adaptive_tempered_smc,
            logprior_fn=log_prior,
            loglikelihood_fn=log_likelihood,
            mcmc_step_fn=blackjax.hmc.build_kernel(),
            mcmc_init_fn=blackjax.hmc.init,
            resampling_fn=resampling.systematic,
            mcmc_parameter_update_fn=tuned,
            initial_parameter_value=extend_params(parameters),
            target_ess=0.5,
            num_mcmc_steps=MOVES,
        )
        state = algorithm.init(particles)

        def going(carry):
            return (carry[0].sampler_state.tempering_param < 1) & (carry[1] < 200)

        def once(carry):
            state, step, total = carry
            state, info = algorithm.step(jax.random.fold_in(keys[1], step), state)
            return state, step + 1, total + info.log_likelihood_increment

        state, steps, total = jax.lax.while_loop(going, once, (state, 0, jnp.float32(0)))
        state = state.sampler_state
        # Its last particles carry the weights of the last temperature.
        chosen = resampling.systematic(keys[2], state.weights, number)
        return jax.tree.map(lambda x: x[chosen], state.particles), total, steps, steps * MOVES

    return run


def vectors(position):
    """(particle, size)."""
    return np.concatenate([np.asarray(x, float).reshape(len(x), -1) for x in jax.tree.leaves(position)], axis=1)


def measure(name, number, rounds, reference_factor, reference_runs=4):
    """One model: seconds, evidence error and effective particles of each sampler."""
    source, back, exact = reference_of(name)
    big = ours(source, number * reference_factor, effective_sample_size=0.7)
    references = [big(jax.random.key(1000 + i)) for i in range(reference_runs)]
    pooled = np.concatenate([vectors(jax.vmap(back)(found[0])) for found in references])
    mean, variance = pooled.mean(0), pooled.var(0)
    logs = np.array([float(found[1]) for found in references])
    known = float(np.log(np.mean(np.exp(logs - logs.max()))) + logs.max()) if exact is None else float(exact)
    posterior, _ = MODELS[name]()
    samplers = {"jaxprob": ours(posterior, number), "blackjax": blackjaxs(posterior, number)}
    first, seconds, found = {}, {n: [] for n in samplers}, {n: [] for n in samplers}
    for round_ in range(rounds + 1):
        for sampler, run in samplers.items():
            began = time.perf_counter()
            result = jax.block_until_ready(run(jax.random.key(round_)))
            spent = time.perf_counter() - began
            if round_ == 0:
                first[sampler] = spent
            else:
                seconds[sampler].append(spent)
                found[sampler].append(result)
    runs = f"{reference_runs} runs of {number * reference_factor}, sd {logs.std(ddof=1):.3f}"
    row = {
        "dimension": posterior.dim,
        "log_evidence": round(known, 3),
        "reference": "exact" if exact is not None else runs,
    }
    for sampler, results in found.items():
        estimates = np.array([float(result[1]) for result in results])
        means = np.array([vectors(result[0]).mean(0) for result in results])
        deviations = np.array([vectors(result[0]).std(0) for result in results])
        effective = float(1 / np.mean(np.mean((means - mean) ** 2, axis=0) / variance))
        median = statistics.median(seconds[sampler])
        row[sampler] = {
            "seconds": round(median, 3),
            "compile_seconds": round(first[sampler] - median, 2),
            "temperatures": round(float(np.mean([int(r[2]) for r in results])), 1),
            "moves": round(float(np.mean([int(r[3]) for r in results])), 1),
            "evidence_error": round(float(np.sqrt(np.mean((estimates - known) ** 2))), 3),
            "evidence_bias": round(float(np.mean(estimates) - known), 3),
            "sd_ratio": [round(float(x), 3) for x in np.quantile(deviations.mean(0) / np.sqrt(variance), [0, 0.5, 1])],
            "effective_particles": round(effective, 1),
            "ms_per_effective_particle": round(1e3 * median / effective, 4),
        }
    return row
