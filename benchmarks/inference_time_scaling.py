"""Search against sampling where the reward errs: chains of reasoning whose mistakes may look right. And evidence.

A chain has ten steps. Each is right with probability 0.7; after the first mistake the chain stays wrong, and about one
in thirty-five is right at the end. A reward model sees the chain after each step and says `1 + noise` while it is right
and `bias - 1 + noise` once it is wrong: the noise is new at each step, the bias is drawn at the mistake and stays. Both
are standard normal. Methods write n chains' worth of steps: best of n; beam search (n / 4 beams, four draws of each); a
particle filter (multinomial resampling at each step, as published); particle Gibbs (four sweeps of n / 4 particles,
resampled likewise) and parallel tempering of it (two temperatures, four sweeps of n / 8). Reported is how often the
answer is right: the chain of the greatest total reward, or one drawn by weight ("drawn"; for a chain of sweeps its last
state).

Variants: other scales of the bias and the noise; rewards that are the difference to the step before, so that chains are
ranked by their last reward and not by the sum; rewards that count less, which changes nothing for a search. With noise
and bias of variance one the log likelihood ratio of a chain that was right throughout to one that was wrong throughout
is 2 / 11 of the sum of its rewards, and not the whole of it.

Evidence: a hidden Markov chain of two states as a generator, its observations as potentials; the mean over repeats of
the ratio of the estimate to the likelihood by the forward recursion in float64.

    python benchmarks/inference_time_scaling.py [--repeats 600] [--out FILE]

Source of the question: Puri, Sudalairaj, Xu, Xu and Srivastava (2025), "A probabilistic inference approach to
inference-time scaling of LLMs using particle-based Monte Carlo methods".
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxprob.inference import particle, smc

HERE = Path(__file__).resolve().parent
EVERY_STEP = {"scheme": smc.multinomial, "threshold": 1.0}
STEPS, RIGHT, SWEEPS, NUMBERS = 10, 0.7, 4, (4, 8, 16, 32, 64)
# Standard deviations of the bias and of the noise, whether chains are ranked by their last reward, and what it counts.
VARIANTS = {
    "as described": (1.0, 1.0, False, 1.0),
    "no bias": (0.0, 1.0, False, 1.0),
    "bias 0.5": (0.5, 1.0, False, 1.0),
    "bias 2": (2.0, 1.0, False, 1.0),
    "noise 2": (1.0, 2.0, False, 1.0),
    "last reward": (1.0, 1.0, True, 1.0),
    "last reward, bias 2": (2.0, 1.0, True, 1.0),
    "half the reward": (1.0, 1.0, False, 0.5),
    "a fifth of the reward": (1.0, 1.0, False, 0.2),
    "a fifth of the reward, bias 2": (2.0, 1.0, False, 0.2),
}


def extend(scales, key, state):
    """One step of reasoning, and what the reward model says of it; the state: whether right, bias, last reward."""
    right, bias, before = state
    for_step, for_bias, for_noise = jax.random.split(key, 3)
    still = right & (jax.random.uniform(for_step) < RIGHT)
    bias = jnp.where(right & ~still, scales[0] * jax.random.normal(for_bias), bias)
    reward = jnp.where(still, 1.0, bias - 1.0) + scales[1] * jax.random.normal(for_noise)
    return {"right": still, "reward": scales[3] * (reward - scales[2] * before)}, (still, bias, reward)


def reward_of(state, element):
    return element["reward"]


def methods(generator, n):
    """By name, functions of a key whose value is whether the answer is right."""

    def is_right(sequence):
        return sequence.elements["right"][..., -1]

    def best_of_n(key):
        return is_right(particle.best_of_n(key, generator, STEPS, reward_of, number=n))

    def beam(width, branching, key):
        found = particle.beam_search(generator, STEPS, reward_of, width=width, branching=branching, key=key)
        return is_right(found.sequences)[0]

    def filtered(method, key):
        always = smc.always(smc.multinomial)
        population = particle.generate(
            jax.random.fold_in(key, 0), generator, STEPS, reward_of, particles=n, resampler=always
        ).population
        return is_right(particle.choose(population, method, key=jax.random.fold_in(key, 1)).particle)

    def chained(kernel, choice, key):
        state, states = kernel.init(None, jax.random.fold_in(key, 0)), []
        for sweep in range(1, SWEEPS):
            states.append(state.position)
            state, _ = kernel.step(jax.random.fold_in(key, sweep), state)
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states, state.position)
        index = jnp.argmax(states.log_potential) if choice == "best" else SWEEPS - 1
        return is_right(states)[index]

    found = {
        "best of n": best_of_n,
        "beam search": Partial(beam, n // 4, 4),
        "beam search, n beams": Partial(beam, n, 2),
        "particle filter": Partial(filtered, "best"),
        "particle filter, drawn": Partial(filtered, "draw"),
    }
    if n >= 8:
        gibbs = particle.sequence_gibbs(generator, STEPS, reward_of, particles=n // SWEEPS, **EVERY_STEP)
        found |= {
            "particle Gibbs": lambda key: chained(gibbs, "best", key),
            "particle Gibbs, drawn": lambda key: chained(gibbs, "last", key),
        }
    if n >= 16:
        tempering = particle.sequence_tempering(
            generator,
            STEPS,
            reward_of,
            inverse_temperatures=[1.0, 0.5],
            particles=n // (2 * SWEEPS),
            **EVERY_STEP,
        )
        found |= {
            "parallel tempering": lambda key: chained(tempering, "best", key),
            "parallel tempering, drawn": lambda key: chained(tempering, "last", key),
        }
    return found


def accuracies(repeats, seed=0):
    """Accuracy by variant, method and n; one program for all variants."""
    rows = {name: {} for name in VARIANTS}
    for n in NUMBERS:

        def right(name, scales, key, n=n):
            start = jnp.ones((), bool), jnp.zeros(()), jnp.zeros(())
            return methods(particle.Sampler(start, Partial(extend, scales)), n)[name](key)

        names = methods(particle.Sampler(None, extend), n)
        for index, name in enumerate(names):
            program = jax.jit(jax.vmap(lambda scales, key, name=name, right=right: right(name, scales, key), (None, 0)))
            # The same keys for all variants.
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), n), index), repeats)
            for variant, scales in VARIANTS.items():
                share = float(jnp.mean(program(jnp.asarray(scales, jnp.float32), keys).astype(jnp.float32)))
                rows[variant].setdefault(name, {})[str(n)] = round(share, 4)
            print(n, name, rows["as described"][name][str(n)], flush=True)
    return rows


def bars(rows):
    """What is asked of the toy: whether sampling holds where search finds the errors of the reward."""
    sampled, best = rows["particle filter"], rows["best of n"]
    beam, wide = (rows[name]["64"] for name in ("beam search", "beam search, n beams"))
    return {
        "filter_64_over_beam_64": round(sampled["64"] / beam, 3) if beam else None,
        "filter_64_over_64_beams": round(sampled["64"] / wide, 3) if wide else None,
        "filter_64_at_least_1.5_beam_64": sampled["64"] > 0 and sampled["64"] >= 1.5 * beam,
        "filter_64_at_least_1.5_of_64_beams": sampled["64"] > 0 and sampled["64"] >= 1.5 * wide,
        "filter_4_minus_best_of_64": round(sampled["4"] - best["64"], 4),
        "filter_4_at_least_best_of_64_less_0.05": sampled["4"] >= best["64"] - 0.05,
    }


def evidence(repeats=4000, seed=1):
    """The mean of the ratio of estimate and likelihood, and its z-score."""
    initial, matrix = np.array([0.35, 0.65]), np.array([[0.85, 0.15], [0.4, 0.6]])
    emission = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    ys = np.array([0, 2, 2, 1, 0, 0, 2, 1, 1, 2])
    forward = initial * emission[:, ys[0]]
    for y in ys[1:]:
        forward = forward @ matrix * emission[:, y]
    table = jnp.log(jnp.asarray(np.vstack([matrix, initial]), jnp.float32))
    seen = jnp.log(jnp.asarray(emission[:, ys].T, jnp.float32))
    chain = particle.LanguageModel(None, lambda state, token: (table[token], state), 2)
    observed = particle.Potential(jnp.int32(0), lambda time, token: (seen[time, token], time + 1))
    found = {}
    for particles in (4, 100):

        def run(key, particles=particles):
            return particle.generate(key, chain, len(ys), observed, particles=particles).log_evidence

        estimates = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(seed), repeats))
        ratios = np.exp(np.float64(estimates)) / forward.sum()
        error = ratios.std(ddof=1) / np.sqrt(repeats)
        found[str(particles)] = {
            "repeats": repeats,
            "mean_ratio": round(float(ratios.mean()), 5),
            "sd": round(float(ratios.std(ddof=1)), 4),
            "z": round(float((ratios.mean() - 1) / error), 2),
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=600)
    parser.add_argument("--out", default=HERE / "results" / "inference_time_scaling.json", type=Path)
    args = parser.parse_args()
    rows = accuracies(args.repeats)
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "task": {"steps": STEPS, "right": RIGHT, "sweeps": SWEEPS, "repeats": args.repeats},
        "variants": {
            name: dict(zip(("bias_sd", "noise_sd", "last_reward", "counts"), scales, strict=True))
            | {"bars": bars(rows[name]), "right": rows[name]}
            for name, scales in VARIANTS.items()
        },
        "evidence": evidence(),
    }
    for name in VARIANTS:
        print(f"\n{name}\n{'':26}" + "".join(f"{n:>7}" for n in NUMBERS))
        for method, shares in rows[name].items():
            print(f"{method:26}" + "".join(f"{shares[str(n)]:7.2f}" if str(n) in shares else " " * 7 for n in NUMBERS))
        print(report["variants"][name]["bars"])
    print(report["evidence"])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
