"""Learned block proposals beside kernels that learn nothing, at equal wall time.

Grids: Bayes nets of 4 x 4 binary nodes with nearly deterministic tables; a network proposes 3 x 3 blocks given what
surrounds them, single-site Gibbs is the peer. The error is that of the marginals, exact ones by enumeration of 65,536
states, on ten nets whose tables the network has never seen.

Mixtures: the means of ten clusters given 100 points, labels summed out. All samplers draw labels given means and means
given labels from their exact laws; that alone is the first peer ("labels"). The second also moves a mean near a random
point ("by hand"), the third merges two clusters and splits another, picked by their sizes (as two random points pick
them in Jain and Neal's move; here the number of clusters stays), the fourth ("balanced split-merge") picks those that
gain by it, as Zanella (2020) weighs moves; both are checked against enumeration before anything is measured. Ours moves
a mean to where a network proposes, given the other means and the points. "By hand" and ours move, mostly, a mean that
the others can do without. Effective samples per second are the smallest over the log density and the predictive density
at five places, of chains that start apart; samplers take turns.

    python benchmarks/learned_proposals.py [--seconds 2] [--nets 10] [--out benchmarks/results/learned_proposals.json]
"""

import argparse
import itertools
import json
import os
import platform
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _mixtures import (
    CLUSTERS,
    SPREAD,
    Pointer,
    by_hand,
    check_split_merge,
    draw_points,
    labels_and_means,
    log_kernels,
    mixture_density,
    sample_cluster,
    with_clusters,
    with_splits,
)

from jaxprob import analysis, core, scan
from jaxprob.inference import mcmc

HERE = Path(__file__).resolve().parent
SIDE, BLOCK, CHAINS = 4, 3, 16
BALANCES = {"split-merge": 0.0, "balanced split-merge": 0.5}
FRACTIONS = (0.75, 0.9)  # of the entries of the tables, nearly deterministic


# Bayes nets: every node has the one above it and the one on its left as parents, none counts as 0.
def draw_tables(key, shape, fraction):
    """Log odds of a one given (up, left): a fraction of the entries is within 0.0025 of 0 or 1, the others uniform."""
    keys, shape = jax.random.split(key, 4), (*shape, 2, 2)
    signs = jnp.where(jax.random.bernoulli(keys[0], shape=shape), 1.0, -1.0)
    near = signs * jax.random.uniform(keys[1], shape, minval=6.0, maxval=9.0)
    return jnp.where(jax.random.uniform(keys[2], shape) < fraction, near, jax.random.logistic(keys[3], shape))


def log_odds(tables, grid):
    """Of every node of a grid whose first row and column are surroundings: (rows - 1, columns - 1)."""
    up, left = grid[:-1, 1:], grid[1:, :-1]
    rows, columns = (jnp.expand_dims(jnp.arange(size), axis) for size, axis in zip(up.shape, (1, 0), strict=True))
    rows, columns = (jnp.broadcast_to(index, up.shape) for index in (rows, columns))
    return tables[rows, columns, up, left]


def grid_density(tables, grid):
    odds = log_odds(tables, jnp.pad(grid, ((1, 0), (1, 0))))
    return jnp.sum(jax.nn.log_sigmoid(jnp.where(grid == 1, odds, -odds)))


def features(tables, window):
    """What the network sees: the tables of a block with the parents put in that are known, and what its children say.

    Args:
      tables: (BLOCK + 1, BLOCK + 1, 2, 2), of the block and of the row and the column after it.
      window: (BLOCK + 2, BLOCK + 2), of which the block in the middle is left out.
    """
    block = tables[:-1, :-1]
    above = block[0, np.arange(BLOCK), window[0, 1:-1]]  # (BLOCK, left)
    block = block.at[0].set(jnp.stack([above, above], axis=1))
    before = block[np.arange(BLOCK), 0, :, window[1:-1, 0]]  # (BLOCK, up)
    block = block.at[:, 0].set(jnp.stack([before, before], axis=2))
    below = tables[-1, np.arange(BLOCK), :, window[-1, :-2]]  # (BLOCK, up)
    after = tables[np.arange(BLOCK), -1, window[:-2, -1]]  # (BLOCK, left)
    odds = jnp.concatenate([below, after])
    signs = 2.0 * jnp.concatenate([window[-1, 1:-1], window[1:-1, -1]]) - 1
    children = jax.nn.log_sigmoid(jnp.expand_dims(signs, 1) * odds)
    return jnp.concatenate([block.ravel(), children.ravel()]) / 4


def sample_motif(key, fraction):
    """A block with random tables and surroundings, at the edges of a grid or inside."""
    keys = jax.random.split(key, 5)
    size = BLOCK + 1
    tables = draw_tables(keys[0], (size, size), fraction)
    # Beyond an edge parents are 0, and children say nothing.
    first, last = jax.random.bernoulli(keys[1], shape=(2,)), jax.random.bernoulli(keys[2], shape=(2,))
    tables = tables.at[-1].multiply(last[0]).at[:, -1].multiply(last[1])
    window = jax.random.bernoulli(keys[3], shape=(size + 1, size + 1)).astype(jnp.int32)
    window = window.at[0].multiply(first[0]).at[:, 0].multiply(first[1])
    window = window.at[-1, 0].multiply(last[0]).at[0, -1].multiply(last[1])
    uniforms = jax.random.uniform(keys[4], (size, size))
    for row, column in itertools.product(range(size), range(size)):
        odds = tables[row, column, window[row, column + 1], window[row + 1, column]]
        on = (uniforms[row, column] < jax.nn.sigmoid(odds)).astype(jnp.int32)
        window = window.at[row + 1, column + 1].set(on)
    window = window.at[-1].multiply(last[0]).at[:, -1].multiply(last[1])
    return features(tables, window), window[1:-1, 1:-1]


def block_at(row, column):
    return mcmc.Block(
        lambda grid: grid[row : row + BLOCK, column : column + BLOCK],
        lambda grid, values: grid.at[row : row + BLOCK, column : column + BLOCK].set(values),
    )


def with_blocks(proposal):
    def build(tables):
        padded = jnp.pad(tables, ((0, 1), (0, 1), (0, 0), (0, 0)))

        def kernel(row, column):
            near = padded[row : row + BLOCK + 1, column : column + BLOCK + 1]

            def propose(rest):
                window = jnp.pad(rest, 1)[row : row + BLOCK + 2, column : column + BLOCK + 2]
                return proposal(features(near, window))

            return mcmc.block_metropolis(lambda grid: grid_density(tables, grid), propose, block_at(row, column))

        places = itertools.product(range(SIDE - BLOCK + 1), repeat=2)
        return mcmc.cycle([*(kernel(*place) for place in places), with_sites(tables)])

    return build


def with_sites(tables):
    return mcmc.discrete_gibbs(lambda grid: grid_density(tables, grid), 2)


def exact_marginals(tables):
    """P(node = 1) of each node, in float64 NumPy."""
    grids = np.array(list(itertools.product((0, 1), repeat=SIDE**2)), np.int8).reshape(-1, SIDE, SIDE)
    padded = np.pad(grids, ((0, 0), (1, 0), (1, 0)))
    log_p = np.zeros(len(grids))
    for row, column in itertools.product(range(SIDE), repeat=2):
        odds = np.asarray(tables, float)[row, column][padded[:, row, column + 1], padded[:, row + 1, column]]
        log_p -= np.logaddexp(0, np.where(grids[:, row, column] == 1, -odds, odds))
    p = np.exp(log_p)
    assert abs(p.sum() - 1) < 1e-6
    return np.einsum("s,sij->ij", p, grids)


def at_equal_time(builders, start, draw, seconds, argument):
    """Runs each sampler for about as many seconds, in turn: name to (result, steps, seconds, acceptance).

    Args:
      builders: name to `argument -> algorithm`.
      start: `key -> position`.
      draw: `position -> array`, what is summed over steps.
      argument: pytree that the algorithms are built of.
    """
    found = {}
    for name, build in builders.items():

        @jax.jit
        def run(key, argument, steps, build=build):
            def chain(index):
                algorithm, own = build(argument), core.fold(key, index)

                def one(carry, step):
                    state, total, rate = carry
                    state, info = algorithm.step(core.fold(own, step), state)
                    rates = [one.acceptance_rate for one in info if isinstance(one, mcmc.MetropolisInfo)] or [
                        jnp.ones(())
                    ]
                    return state, total + draw(core.position_of(state)), rate + sum(rates) / len(rates)

                state = algorithm.init(start(core.fold(own, 2**31)), core.fold(own, 2**31 + 1))
                total = jax.tree.map(jnp.zeros_like, draw(core.position_of(state)))
                _, total, rate = scan.repeat(one, (state, total, jnp.zeros(())), steps)
                return total / steps, rate / steps

            return jax.vmap(chain)(jnp.arange(CHAINS))

        def timed(steps, seed, run=run):
            began = time.perf_counter()
            result = jax.block_until_ready(run(jax.random.key(seed), argument, steps))
            return result, time.perf_counter() - began

        timed(10, 0)
        pilot = timed(500, 1)[1]
        steps = max(int(500 * seconds / pilot), 100)
        (means, rates), took = timed(steps, 2)
        found[name] = (np.asarray(means), steps, took, float(rates.mean()))
    return found


def grids(seconds, number, train_steps, fraction):
    network = mcmc.joint_categorical_network(np.full((BLOCK, BLOCK), 2), hidden=(256,))
    began = time.perf_counter()
    trained = mcmc.train_proposal(
        jax.random.key(0), partial(sample_motif, fraction=fraction), network, train_steps, batch_size=256
    )
    losses = np.asarray(trained.losses)
    training = {"steps": train_steps, "seconds": time.perf_counter() - began, "loss": float(losses[-100:].mean())}
    builders = {"blocks": with_blocks(trained.proposal), "sites": with_sites}
    rows = []
    for index in range(number):
        tables = draw_tables(core.fold(jax.random.key(777), index), (SIDE, SIDE), fraction)
        truth = exact_marginals(tables)
        found = at_equal_time(
            builders,
            lambda key: jax.random.bernoulli(key, shape=(SIDE, SIDE)).astype(jnp.int32),
            lambda grid: grid.astype(jnp.float32),
            seconds,
            tables,
        )
        row = {"net": index}
        for name, (means, steps, took, rate) in found.items():
            row[name] = {
                "error": float(np.abs(means - truth).mean()),
                "steps": steps,
                "seconds": took,
                "acceptance_rate": rate,
            }
        row["ratio"] = row["sites"]["error"] / row["blocks"]["error"]
        rows.append(row)
        print(
            f"net {index}: error {row['blocks']['error']:.4f} (blocks, {row['blocks']['steps']} steps, acceptance "
            f"{row['blocks']['acceptance_rate']:.2f}) and {row['sites']['error']:.4f} (sites, {row['sites']['steps']} "
            f"sweeps): ratio {row['ratio']:.1f}",
            flush=True,
        )
    ratios = [row["ratio"] for row in rows]
    summary = {
        "median_ratio": float(np.median(ratios)),
        "smallest_ratio": min(ratios),
        "mean_error_ratio": float(
            np.mean([row["sites"]["error"] for row in rows]) / np.mean([row["blocks"]["error"] for row in rows])
        ),
        "acceptance_rate": float(np.mean([row["blocks"]["acceptance_rate"] for row in rows])),
    }
    return {"nearly_deterministic": fraction, "training": training, "nets": rows, **summary}


def mixtures(seconds, number, train_steps):
    check = {name: check_split_merge(balance) for name, balance in BALANCES.items()}
    began = time.perf_counter()
    trained = mcmc.train_proposal(jax.random.key(1), sample_cluster, Pointer(), train_steps, batch_size=64)
    training = {
        "steps": train_steps,
        "seconds": time.perf_counter() - began,
        "loss": float(trained.losses[-100:].mean()),
    }
    builders = {
        "learned": with_clusters(trained.proposal),
        **{name: partial(with_splits, balance=balance) for name, balance in BALANCES.items()},
        "by hand": by_hand,
        "labels": labels_and_means,
    }
    rows = []
    for index in range(number):
        _, points = draw_points(core.fold(jax.random.key(888), index))
        row = {"data": index, **in_turn(builders, points, seconds)}
        for peer in [name for name in builders if name != "learned"]:
            row[f"ratio to {peer}"] = row["learned"]["ess_per_s"] / row[peer]["ess_per_s"]
        rows.append(row)
        print(f"data {index}, ESS/s (acceptance, R-hat):", end=" ")
        for name in builders:
            one = row[name]
            print(f"{name} {one['ess_per_s']:.1f} ({one['acceptance_rate']:.2f}, {one['rhat_max']:.2f})", end="; ")
        print(", ".join(f"ratio to {name} {row[f'ratio to {name}']:.1f}" for name in BALANCES), flush=True)
    return {
        "training": training,
        "check of split-merge": check,
        "data": rows,
        **{f"median_{name}": float(np.median([row[name] for row in rows])) for name in rows[0] if "ratio" in name},
        "smallest_ratio to split-merge": min(row["ratio to split-merge"] for row in rows),
        "acceptance_rate": float(np.mean([row["learned"]["acceptance_rate"] for row in rows])),
    }


def in_turn(builders, points, seconds, draws=2000, rounds=3):
    """Effective samples per second of each sampler: the median of rounds in which each runs for about as long."""
    places = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)) * SPREAD, jnp.float32)

    def runner(build):
        @jax.jit
        def run(key, points, thin):
            def chain(number):
                algorithm, own = build(points), core.fold(key, number)

                def record(state, draw):
                    def one(carry, step):
                        state, info = algorithm.step(core.fold(own, draw, step), carry[0])
                        rates = [one.acceptance_rate for one in jax.tree.leaves(info, is_leaf=is_info) if is_info(one)]
                        return state, rates[0] if rates else jnp.ones(())

                    state, rate = scan.repeat(one, (state, jnp.zeros(())), thin)
                    density = core.logsumexp(log_kernels(places, state.position), axis=1)
                    return state, (jnp.append(density, mixture_density(points, state.position)), rate)

                start = SPREAD * jax.random.normal(core.fold(own, 2**31), (CLUSTERS, 2))
                state = algorithm.init(start, core.fold(own, 2**31 + 1))
                return scan.scan(record, state, jnp.arange(draws))[1]

            return jax.vmap(chain)(jnp.arange(CHAINS))

        return run

    def timed(run, thin, seed):
        began = time.perf_counter()
        result = jax.block_until_ready(run(jax.random.key(seed), points, thin))
        return result, time.perf_counter() - began

    runs = {name: runner(build) for name, build in builders.items()}
    thins = {}
    for name, run in runs.items():
        timed(run, 1, 0)
        thins[name] = max(round(seconds / timed(run, 1, 1)[1]), 1)
    found = {name: [] for name in runs}
    for seed in range(rounds):
        for name, run in runs.items():
            (values, rates), took = timed(run, thins[name], 2 + seed)
            kept = np.asarray(values)[:, draws // 4 :]  # a quarter to settle
            ess = min(float(analysis.effective_sample_size(kept[..., k])) for k in range(kept.shape[2]))
            rhat = max(float(analysis.r_hat(kept[..., k])) for k in range(kept.shape[2]))
            found[name].append((ess, ess / (took * 0.75), rhat, took, float(rates.mean()), float(kept[..., -1].mean())))
    columns = ("ess_min", "ess_per_s", "rhat_max", "seconds", "acceptance_rate", "mean_log_density")
    medians = {name: np.median(found[name], axis=0).tolist() for name in runs}
    return {name: {"steps": thins[name] * draws, **dict(zip(columns, medians[name], strict=True))} for name in runs}


def is_info(value):
    return isinstance(value, mcmc.MetropolisInfo)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--nets", type=int, default=10)
    parser.add_argument("--data", type=int, default=6)
    parser.add_argument("--train-grids", type=int, default=6000)
    parser.add_argument("--train-mixtures", type=int, default=4000)
    parser.add_argument("--parts", default="grids,mixtures")
    parser.add_argument("--out", default=HERE / "results" / "learned_proposals.json", type=Path)
    args = parser.parse_args()
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
        "chains": CHAINS,
        **{part: before[part] for part in ("grids", "mixtures") if part in before and part not in args.parts},
    }
    if "grids" in args.parts:
        report["grids"] = []
        for fraction in FRACTIONS:
            report["grids"].append(grids(args.seconds, args.nets, args.train_grids, fraction))
            print({name: value for name, value in report["grids"][-1].items() if name != "nets"})
    if "mixtures" in args.parts:
        report["mixtures"] = mixtures(2 * args.seconds, args.data, args.train_mixtures)
        print({name: value for name, value in report["mixtures"].items() if name != "data"})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
