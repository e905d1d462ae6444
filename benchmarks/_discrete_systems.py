"""Discrete diffusion on two systems with known entropies: routed decoding of a grammar, and a heartbeat of bits.

`reparameterized`: a Markov chain of four states, two of whose successors are forbidden, of length 32; a transformer of
two blocks. Validity is the share of samples without a forbidden pair: of `top_k` and of `ancestral` with the same
weights, and the training steps to a given bound of both weightings.

`thermodynamics_binomial`: 20 bits with a beat in every fifth, the phase at random, log2(5) bits in all.

    python benchmarks/_discrete_systems.py [reparameterized] [thermodynamics_binomial]

Sources: Zheng et al. (2023), "A reparameterized discrete diffusion model for text generation"; Sohl-Dickstein et al.
(2015), "Deep unsupervised learning using nonequilibrium thermodynamics".
"""

import functools
import json
import math
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
LENGTH, SUCCESSORS = 32, (0.6, 0.4)  # of state i: i + 1 and i + 2, modulo 4
WIDTH, DEPTH, BATCH, STEPS, CHUNK, RATE = 48, 2, 64, 3000, 100, 2e-3
SAMPLES = 2000
ROUTED = "top_k 8, likeliest, noise 0.5, revised"  # the decoder of the paper


def grammar(key, number):
    """Sequences of the Markov chain, (number, 32)."""
    import jax
    import jax.numpy as jnp

    first = jax.random.randint(jax.random.fold_in(key, 0), (number, 1), 0, 4)
    leaps = 1 + jax.random.bernoulli(jax.random.fold_in(key, 1), SUCCESSORS[1], (number, LENGTH - 1)).astype(jnp.int32)
    return (first + jnp.concatenate([jnp.zeros_like(first), jnp.cumsum(leaps, axis=1)], axis=1)) % 4


def check(name, got, wanted):
    """A row of what should be, such as "<= 0.8", and whether it was so."""
    sign, number = wanted.split()
    held = got >= float(number) if sign == ">=" else got <= float(number)
    return {"check": name, "got": float(got), "wanted": wanted, "held": bool(held)}


def valid(samples):
    """The share of sequences that the chain can make."""
    import numpy as np

    leaps = np.diff(np.asarray(samples), axis=1) % 4
    return float(np.mean(np.all((leaps == 1) | (leaps == 2), axis=1)))


def train(process, apply, params, draw, steps, rate, key, batch=BATCH, evaluate=None):
    """Adam with a rate that falls to nothing; the parameters, and what `evaluate` says after each chunk."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxprob import core, scan
    from jaxprob.models import diffusion

    objective = diffusion.loss(process, apply)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def chunk(carry, start):
        def step(carry, i):
            params, state = carry
            own = core.fold(key, i)
            gradient = jax.grad(objective)(params, draw(core.fold(own, 0), batch), core.fold(own, 1))
            with jax.numpy_dtype_promotion("standard"):
                change, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, change), state), None

        return scan.scan(step, carry, start + jnp.arange(CHUNK))[0]

    carry, seen = (params, optimizer.init(params)), []
    for start in range(0, steps, CHUNK):
        carry = chunk(carry, jnp.int32(start))
        if evaluate is not None:
            seen.append(float(evaluate(carry[0])))
    return carry[0], seen


def reparameterized():
    """S229: validity of samples by solver, and training steps to a bound by weighting."""
    import jax
    import numpy as np

    from jaxprob.inference import diffusion as samplers
    from jaxprob.models import diffusion
    from jaxprob.models.diffusion import networks

    key = jax.random.key(0)
    network = networks.diffusion_transformer(WIDTH, DEPTH, 4, vocabulary=4)

    def apply(params, x, t, condition):
        return network.apply(params, x.tokens, t, condition)

    held_out = grammar(jax.random.fold_in(key, 1), 256)
    first = network.init(jax.random.fold_in(key, 2), held_out[0], 0.5)
    leaps = -sum(p * math.log(p) for p in SUCCESSORS)
    entropy = math.log(4) + (LENGTH - 1) * leaps
    weightings, trained = {}, {}
    for weighting in ("reciprocal", "linear"):
        process = diffusion.reparameterized(4, "mask", weighting=weighting)

        # The same masks each time, so that the bounds of two networks differ by the networks.
        def evaluate(params, process=process):
            denoiser = functools.partial(apply, params)
            return samplers.negative_elbo(jax.random.fold_in(key, 3), process, denoiser, held_out, draws=16).nats.mean()

        begun = time.perf_counter()
        params, bounds = train(
            process, apply, first, grammar, STEPS, RATE, jax.random.fold_in(key, 4), evaluate=evaluate
        )
        trained[weighting] = process, params
        weightings[weighting] = {
            "bounds_nats": [round(value, 3) for value in bounds],
            "final_bound_nats": bounds[-1],
            "seconds": round(time.perf_counter() - begun, 1),
        }
    ratios = {}
    for excess in (1.0, 2.0, 4.0, 8.0):
        steps = {
            name: next((CHUNK * (i + 1) for i, b in enumerate(run["bounds_nats"]) if b <= entropy + excess), None)
            for name, run in weightings.items()
        }
        ratio = None if None in steps.values() else steps["linear"] / steps["reciprocal"]
        ratios[f"within {excess} nats of the entropy"] = {**steps, "ratio": ratio}

    reached = [(name, row) for name, row in ratios.items() if row["ratio"] is not None]

    process, params = trained["linear"]
    denoiser = functools.partial(apply, params)
    solvers = {
        "ancestral 8": samplers.ancestral(8),
        "ancestral 64": samplers.ancestral(64),
        "top_k 8": samplers.top_k(8, "linear"),
        "top_k 8, cosine": samplers.top_k(8),
        "top_k 8, likeliest, noise 0.5": samplers.top_k(8, "linear", 0.0, 0.5),
        ROUTED: samplers.top_k(8, "linear", 0.0, 0.5, revise=True),
        "remasking 64": samplers.remasking(64, 0.2),
    }
    validity = {}
    for name, solver in solvers.items():
        drawn = np.asarray(
            samplers.sample(jax.random.fold_in(key, 5), process, denoiser, (SAMPLES, LENGTH), solver=solver)
        )
        leaps_of_two = np.mean(np.diff(drawn, axis=1) % 4 == 2)
        validity[name] = {
            "valid": valid(drawn),
            "different": len(np.unique(drawn, axis=0)) / SAMPLES,
            "share_of_the_rarer_successor": round(float(leaps_of_two), 3),
        }
    routed, few, many = (validity[n]["valid"] for n in (ROUTED, "ancestral 8", "ancestral 64"))
    return {
        "entropy_nats": entropy,
        "training": weightings,
        "steps_to_a_bound": ratios,
        "samples": validity,
        "checks": [
            check("validity of 8 routed steps over 8 at random", routed / max(few, 1 / SAMPLES), ">= 1.3"),
            check("validity of 8 routed steps over 64 at random", routed / max(many, 1 / SAMPLES), ">= 0.9"),
            *(
                check(f"steps of linear over reciprocal weights, {name}", row["ratio"], "<= 0.8")
                for name, row in reached
            ),
        ],
    }


def heartbeat(key, number):
    """Bits with a beat in every fifth, (number, 20)."""
    import jax
    import jax.numpy as jnp

    phases = jax.random.randint(key, (number, 1), 0, 5)
    return ((jnp.arange(20)[None] - phases) % 5 == 0).astype(jnp.int32)


def thermodynamics_binomial():
    """S166, the binomial half: bits of a sequence of 20, which have log2(5)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxprob.inference import diffusion as samplers
    from jaxprob.models import diffusion
    from jaxprob.models.diffusion import networks

    key = jax.random.key(1)
    network = networks.perceptron(96, 2)
    process = diffusion.binomial()

    def apply(params, x, t, condition):
        return network.apply(params, 2.0 * x.astype(jnp.float32) - 1, t, condition)

    examples = ((jnp.arange(20)[None] - jnp.arange(5)[:, None]) % 5 == 0).astype(jnp.int32)
    first = network.init(jax.random.fold_in(key, 0), jnp.zeros(20), 0.5)
    begun = time.perf_counter()
    params, _ = train(process, apply, first, heartbeat, 6000, 3e-3, jax.random.fold_in(key, 1), 128)
    seconds = time.perf_counter() - begun
    denoiser = functools.partial(apply, params)

    bits = {}
    for name, number in (("in_2000_steps", 2000), ("in_continuous_time", None)):
        given = {"steps": number, "draws": 20_000}
        bound = samplers.negative_elbo(jax.random.fold_in(key, 2), process, denoiser, examples, **given)
        error = np.sqrt(np.sum(np.square(bound.standard_error))) / 5
        bits[name] = {"bits": float(bound.nats.mean()) / math.log(2), "standard_error": float(error) / math.log(2)}
    drawn = samplers.sample(
        jax.random.fold_in(key, 4), process, denoiser, (SAMPLES, 20), solver=samplers.ancestral(200)
    )
    hits = np.array([np.mean(np.all(np.asarray(drawn) == np.asarray(x), axis=1)) for x in examples])
    return {
        "entropy_bits": math.log2(5),
        **bits,
        "samples_that_are_heartbeats": float(hits.sum()),
        "share_of_each_phase": [round(float(share), 3) for share in hits],
        "training_seconds": round(seconds, 1),
        "checks": [check("bits of a heartbeat beyond log2(5)", bits["in_2000_steps"]["bits"] - math.log2(5), "<= 0.1")],
    }


PARTS = {"reparameterized": reparameterized, "thermodynamics_binomial": thermodynamics_binomial}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        print(json.dumps({part: PARTS[part]()}, indent=1))
