"""Vectorised NUTS without lock-step: leapfrogs and seconds of many chains, interleaved and under `vmap`.

Chains are warmed up together; then the same draws are made twice from the same states and keys, by `mcmc.interleave`
(one leapfrog of every chain an iteration, each chain at its own place) and by a scan over `vmap(kernel.step)` (every
transition as long as the slowest chain's). Iterations of the loop are held against the leapfrogs that a chain makes on
average, which is what a chain alone would cost. In float32 on this device; both runs are repeated in turn.

    python benchmarks/interleave.py [--chains 64] [--draws 500] [--rounds 3] [--models ...]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
MODELS = ("cancer_noncentred", "cancer_centred", "eight_schools-eight_schools_noncentered", "logistic_31")


def measure(name, chains, draws, rounds):
    """One model: what it took, as a dictionary."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.mcmc import load
    from jaxprob import core
    from jaxprob.inference import mcmc

    target, _ = load(name)
    key, warm_key = jax.random.key(1), jax.random.key(2)
    tuning = mcmc.warmup(mcmc.nuts, target.log_density, num_steps=mcmc.pick_num_steps(chains), axis_name="chain")
    pooled = core.Shared(0, None)
    every = jnp.arange(chains)

    def key_of(chain, step):
        return core.fold(key, chain, step)

    @jax.jit
    def warm(starts):
        keys = jax.random.split(warm_key, chains)
        state = jax.vmap(tuning.init, out_axes=pooled, axis_name="chain")(starts, keys)

        def body(state, index):
            keys = jax.vmap(lambda chain: core.fold(warm_key, chain, index))(every)
            step = jax.vmap(tuning.step, in_axes=(0, pooled), out_axes=(pooled, 0), axis_name="chain")
            return step(keys, state)[0], None

        return jax.lax.scan(body, state, jnp.arange(mcmc.pick_num_steps(chains)))[0]

    tuned = warm(target.initial(0, chains))
    iterations = np.zeros(1, int)

    def kernel_of(state):
        return tuning.finish(state)

    @jax.jit
    def interleaved(state):
        return mcmc.interleave(kernel_of(state), key_of, state.chain.kernel, draws, draws)

    @jax.jit
    def lock_step(state):
        kernel = kernel_of(state)

        def body(states, index):
            keys = jax.vmap(lambda chain: key_of(chain, index))(every)
            states, info = jax.vmap(kernel.step)(keys, states)
            return states, (states.position, info)

        return jax.lax.scan(body, state.chain.kernel, jnp.arange(draws))

    @jax.jit
    def counted(state):
        kernel = kernel_of(state)

        def move(work):
            # Called once an iteration for all chains.
            jax.debug.callback(lambda _: np.add.at(iterations, 0, 1), jnp.zeros(()))
            return kernel.move(work)

        return mcmc.interleave(kernel._replace(move=move), key_of, state.chain.kernel, draws, draws)

    jax.block_until_ready(counted(tuned))
    jax.effects_barrier()
    seconds = {"interleaved": [], "lock_step": []}
    found = {}
    for attempt in range(rounds + 1):
        for label, program in (("interleaved", interleaved), ("lock_step", lock_step)):
            began = time.perf_counter()
            found[label] = jax.block_until_ready(program(tuned))
            if attempt:  # the first call compiles
                seconds[label].append(time.perf_counter() - began)
    (_, (one, info)), (_, (other, _)) = found["interleaved"], found["lock_step"]
    same = all(bool(jnp.array_equal(x, y)) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    steps = np.asarray(info.num_steps, float)  # (draw, chain)
    alone = steps.sum(0).mean()
    return {
        "model": name,
        "leapfrogs_of_a_chain": alone,
        "slowest_chain": steps.sum(0).max() / alone,
        "interleaved": int(iterations[0]) / alone,
        "lock_step": steps.max(1).sum() / alone,
        "interleaved_s": statistics.median(seconds["interleaved"]),
        "lock_step_s": statistics.median(seconds["lock_step"]),
        "same_draws": same,
        "device": jax.devices()[0].device_kind,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "interleave.json")
    args = parser.parse_args()
    rows = []
    for name in args.models.split(","):
        row = measure(name, args.chains, args.draws, args.rounds)
        rows.append(row)
        print(
            f"{name[:40]:40} leapfrogs of a chain {row['leapfrogs_of_a_chain']:7.0f}; iterations over that: "
            f"interleaved {row['interleaved']:.2f}, lock-step {row['lock_step']:.2f}; seconds "
            f"{row['interleaved_s']:.2f} and {row['lock_step_s']:.2f}; same draws: {row['same_draws']}",
            flush=True,
        )
    report = {
        "device": rows[0]["device"],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "chains": args.chains,
        "draws": args.draws,
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
