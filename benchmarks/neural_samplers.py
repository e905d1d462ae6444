"""Learnt samplers of un-normalised densities: a 4 x 4 Ising model, a many-well density and a funnel.

Ising (periodic, J = 1): the masked sampler against all 65,536 states, at three inverse temperatures; beside it one
chain of single-site Gibbs with as many evaluations of the density as training and draws had together, started from a
random state. Energies and signs of the magnetisation are those of draws as they come, without their weights.

Wells: five double wells, -x^4 + 6 x^2 + x / 2, whose 32 modes hold unequal mass; log Z by quadrature. Funnel (Neal's,
ten scalars): log Z is 0. Errors of log Z are root mean squares over ten sets of draws of one trained sampler. Beside
them `smc.tempered` from a normal law with the standard deviation of the samplers' noise, at as many evaluations of the
gradient as a set of draws takes, and at as many as training and one set take; a move counts as its leapfrog steps and a
temperature as one more.

    python benchmarks/neural_samplers.py [--parts ising wells funnel] [--out FILE]
"""

import argparse
import itertools
import json
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from jaxprob import scan  # noqa: E402
from jaxprob.inference import smc  # noqa: E402
from jaxprob.inference.diffusion import (  # noqa: E402
    controlled_monte_carlo,
    denoising_diffusion_sampler,
    fit_sampler,
    masked_sampler,
    path_integral_sampler,
)

SIDE, BUFFER, EVERY, TRAINING = 4, 256, 4, 2000
PUBLISHED = {0.28: 12.53066745, 0.4407: 15.52224629, 0.6: 20.05653288}
DRAWS, SETS = 20_000, 10


def energy(spins, roll):
    """Of spins (..., side, side), each of 32 bonds once."""
    return -(spins * (roll(spins, 1, -1) + roll(spins, 1, -2))).sum((-1, -2))


def gibbs(key, beta, sites):
    """The share of a chain of single-site updates with a positive and with a negative magnetisation."""

    def update(spins, x):
        key, i, j = x
        field = spins[i - 1, j] + spins[(i + 1) % SIDE, j] + spins[i, j - 1] + spins[i, (j + 1) % SIDE]
        up = jax.random.uniform(key) < jax.nn.sigmoid(2 * beta * field)
        spins = spins.at[i, j].set(jnp.where(up, 1.0, -1.0))
        return spins, jnp.sum(spins)

    keys = jax.random.split(key, 4)
    start = jnp.where(jax.random.bernoulli(keys[0], shape=(SIDE, SIDE)), 1.0, -1.0)
    places = (jax.random.randint(k, (sites,), 0, SIDE) for k in keys[2:])
    _, totals = scan.scan(update, start, (jax.random.split(keys[1], sites), *places))
    return jnp.mean(totals > 0), jnp.mean(totals < 0)


def ising(beta):
    def log_density(tokens):
        return -beta * energy(2.0 * tokens.reshape(SIDE, SIDE) - 1, jnp.roll)

    states = 2.0 * np.array(list(itertools.product((0, 1), repeat=SIDE**2))).reshape(-1, SIDE, SIDE) - 1
    energies = energy(states, np.roll)
    log_z = np.logaddexp.reduce(-beta * energies)
    probs = np.exp(-beta * energies - log_z)
    positive = probs[states.sum((1, 2)) > 0].sum()
    assert abs(log_z - PUBLISHED[beta]) < 1e-7

    sampler = masked_sampler(log_density, 2, SIDE**2, buffer=BUFFER, every=EVERY)
    started = time.perf_counter()
    found = jax.block_until_ready(fit_sampler(sampler, jax.random.key(0), steps=TRAINING))
    seconds = time.perf_counter() - started
    sets = [sampler.draw(jax.random.key(1 + i), found.params, DRAWS) for i in range(5)]
    spins = 2.0 * np.concatenate([np.asarray(draws.positions) for draws in sets]).reshape(-1, SIDE, SIDE) - 1
    log_weights = np.concatenate([np.asarray(draws.log_weights, float) for draws in sets])
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    drawn, magnetization = energy(spins, np.roll), spins.sum((1, 2))
    levels = np.unique(energies)
    exact = np.array([probs[energies == level].sum() for level in levels])

    def distance(w):
        return 0.5 * np.abs(np.array([w[drawn == level].sum() for level in levels]) - exact).sum()

    evaluations = BUFFER * (TRAINING // EVERY) + DRAWS
    chain = jax.jit(gibbs, static_argnums=2)(jax.random.key(9), beta, evaluations)
    return {
        "beta": beta,
        "log_z": log_z,
        "seconds_of_training_with_compilation": seconds,
        "density_evaluations_of_training": BUFFER * (TRAINING // EVERY),
        "effective_sample_size": 1 / (weights**2).sum() / len(weights),
        "log_z_error_of_20000_draws": [float(draws.log_evidence) - log_z for draws in sets],
        "log_z_standard_error": float(sets[0].log_evidence_error),
        "energy_total_variation": distance(np.full(len(drawn), 1 / len(drawn))),
        "energy_total_variation_weighted": distance(weights),
        "positive": np.mean(magnetization > 0),
        "negative": np.mean(magnetization < 0),
        "positive_exact": positive,
        "gibbs_positive": float(chain[0]),
        "gibbs_negative": float(chain[1]),
    }


def wells(x):
    return jnp.sum(-(x**4) + 6 * x**2 + 0.5 * x)


def funnel(x):
    neck, rest = x[0], x[1:]
    log_neck = -0.5 * (neck / 3) ** 2 - math.log(3 * math.sqrt(2 * math.pi))
    return log_neck - 0.5 * jnp.sum(rest**2) * jnp.exp(-neck) - 0.5 * rest.size * (neck + math.log(2 * math.pi))


def many_wells():
    grid = np.linspace(-8, 8, 400_001)
    return wells, 5, 5 * math.log(np.trapezoid(np.exp(-(grid**4) + 6 * grid**2 + 0.5 * grid), grid))


# Name to (log density, size, log Z), and the scale of the noise.
TARGETS = {"wells": (many_wells, 2.0), "funnel": (lambda: (funnel, 10, 0.0), 2.0)}
SAMPLERS = {
    "path_integral_sampler": (path_integral_sampler, {}),
    "denoising_diffusion_sampler": (denoising_diffusion_sampler, {}),
    "controlled_monte_carlo": (controlled_monte_carlo, {}),
}
STEPS, PATHS, UPDATES, RATE = 64, 64, 2000, 3e-3


def tempered(log_density, size, log_z, scale, evaluations):
    """Errors of log Z by `smc.tempered` with about so many gradient evaluations in each of ten runs."""

    def reference(x):
        return -0.5 * jnp.sum((x / scale) ** 2) - size * math.log(scale * math.sqrt(2 * math.pi))

    def run(key, particles):
        algorithm = smc.tempered(
            log_density,
            reference=reference,
            sample_prior=lambda key: scale * jax.random.normal(key, (size,)),
            particles=particles,
        )
        found = smc.run_sampler(key, algorithm)
        moves = jnp.sum(found.info.num_moves)
        return found.state.log_evidence - log_z, 4 * moves + found.num_steps

    go = jax.jit(run, static_argnums=1)
    pilot = 1024
    _, each = go(jax.random.key(0), pilot)
    particles = max(2, int(evaluations / int(each)))
    found = [go(jax.random.key(1 + i), particles) for i in range(SETS)]
    errors = np.array([float(error) for error, _ in found])
    return {
        "particles": particles,
        "gradient_evaluations": float(np.mean([particles * int(each) for _, each in found])),
        "log_z_rmse": math.sqrt(np.mean(errors**2)),
        "log_z_bias": errors.mean(),
    }


def continuous(name):
    make, scale = TARGETS[name]
    log_density, size, log_z = make()
    rows, draws_cost = [], DRAWS * (STEPS + 1)
    training_cost = UPDATES * PATHS * (STEPS + 1)
    for label, (factory, options) in SAMPLERS.items():
        sampler = factory(log_density, initial=jnp.zeros(size), scale=scale, steps=STEPS, paths=PATHS, **options)
        rate = optax.cosine_decay_schedule(RATE, UPDATES)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        started = time.perf_counter()
        found = jax.block_until_ready(fit_sampler(sampler, jax.random.key(0), steps=UPDATES, optimizer=optimizer))
        seconds = time.perf_counter() - started
        sets = [sampler.draw(jax.random.key(1 + i), found.params, DRAWS) for i in range(SETS)]
        errors = np.array([float(draws.log_evidence) - log_z for draws in sets])
        rows.append(
            {
                "sampler": label,
                "seconds_of_training_with_compilation": seconds,
                "gradient_evaluations_of_training": training_cost,
                "gradient_evaluations_of_a_set": draws_cost,
                "effective_sample_size": float(np.mean([float(d.effective_sample_size) for d in sets])),
                "elbo_gap": log_z - float(np.mean([float(jnp.mean(d.log_weights)) for d in sets])),
                "log_z_rmse": math.sqrt(np.mean(errors**2)),
                "log_z_bias": errors.mean(),
                "log_z_standard_error": float(np.mean([float(d.log_evidence_error) for d in sets])),
            }
        )
        print(rows[-1], flush=True)
    return {
        "log_z": log_z,
        "scale": scale,
        "steps": STEPS,
        "learnt": rows,
        "smc_at_a_set": tempered(log_density, size, log_z, scale, draws_cost),
        "smc_at_training_and_a_set": tempered(log_density, size, log_z, scale, draws_cost + training_cost),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["ising", "wells", "funnel"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "neural_samplers-cpu.json")
    arguments = parser.parse_args()
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    report |= {
        "device": jax.default_backend(),
        "machine": f"{len(os.sched_getaffinity(0))} core(s), {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
    }
    for part in arguments.parts:
        report[part] = [ising(beta) for beta in PUBLISHED] if part == "ising" else continuous(part)
        print(json.dumps(report[part], indent=1, default=float), flush=True)
        arguments.out.write_text(json.dumps(report, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
