"""Learned block proposals beside kernels that learn nothing, at equal wall time.

Grids: Bayes nets of 4 x 4 binary nodes with nearly deterministic tables; a network proposes 3 x 3 blocks given what
surrounds them, single-site Gibbs is the peer. The error is that of the marginals, exact ones by enumeration of 65,536
states, on ten nets whose tables the network has never seen.

Mixtures: the means of ten clusters given 100 points, labels summed out. All samplers draw labels given means and means
given labels from their exact laws; that alone is the first peer ("labels"). The second also moves a mean near a random
point ("by hand"), the third merges two clusters and splits another (Jain and Neal's move, for a fixed number of them;
checked against enumeration before anything is measured), ours moves a mean to where a network proposes, given the other
means and the points. Effective samples per second are the smallest over the log density and the predictive density at
five places, of chains that start apart; samplers take turns.

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
import scipy.stats

from jaxprob import analysis, core, distributions, scan
from jaxprob.inference import mcmc

HERE = Path(__file__).resolve().parent
SIDE, BLOCK, CHAINS = 4, 3, 16
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


# Mixtures of ten Gaussians in the plane.
CLUSTERS, POINTS, SPREAD, NOISE = 10, 100, 3.0, 0.5
LOG_NORMAL = -np.log(2 * np.pi * NOISE**2)


def log_kernels(points, means):
    """Log density of each point under each cluster: (points, clusters)."""
    apart = jnp.expand_dims(points, 1) - jnp.expand_dims(means, 0)
    return LOG_NORMAL - 0.5 * jnp.sum(apart**2, axis=2) / NOISE**2


def mixture_density(points, means):
    likelihood = jnp.sum(core.logsumexp(log_kernels(points, means), axis=1) - np.log(CLUSTERS))
    return likelihood - 0.5 * jnp.sum(means**2) / SPREAD**2


def draw_points(key):
    keys = jax.random.split(key, 3)
    means = SPREAD * jax.random.normal(keys[0], (CLUSTERS, 2))
    labels = jax.random.randint(keys[1], (POINTS,), 0, CLUSTERS)
    return means, means[labels] + NOISE * jax.random.normal(keys[2], (POINTS, 2))


def nearness(points):
    """Weights of each point's neighbours, for two widths: (2, points, points). They stay the same along a chain."""
    squares = jnp.sum((jnp.expand_dims(points, 1) - jnp.expand_dims(points, 0)) ** 2, axis=2) / NOISE**2
    return jnp.exp(-0.5 * jnp.stack([squares, squares / 4]))


def describe(points, near, others):
    """Per point: how well the other clusters explain it and its neighbours, and where the unexplained ones are.

    Returns:
      (points, features), and the mean of the unexplained neighbours relative to the point, for two widths.
    """
    explained = core.logsumexp(log_kernels(points, others), axis=1) - LOG_NORMAL
    left = jnp.expand_dims(jax.nn.sigmoid(-explained), 1)  # what a cluster on that very point would take of it
    clipped = jnp.clip(explained, -10, 3)
    gains = jnp.expand_dims(jax.nn.softplus(-clipped), 1)
    sums = near @ jnp.concatenate([left, gains, left * points, jnp.ones_like(left)], axis=1)
    columns, offsets = [clipped / 5], sums[:, :, 2:4] / (sums[:, :, :1] + 1e-6) - jnp.expand_dims(points, 0)
    for width in range(2):
        columns += [jnp.log(sums[width, :, 0] + 1e-2), jnp.log(sums[width, :, 4]), sums[width, :, 1] / 20]
        columns += [jnp.sum(offsets[width] ** 2, axis=1)]
    return jnp.stack(columns, axis=1), offsets


class Pointer:
    """A mixture density network with a component near every point, and the prior as one more."""

    hidden = 32

    def init(self, key, inputs):
        width = describe(*inputs)[0].shape[1]
        first, second, third = jax.random.split(key, 3)
        size = self.hidden
        params = {
            "first": jax.random.normal(first, (width, size)) / np.sqrt(width),
            "second": jax.random.normal(second, (size, size)) / np.sqrt(size),
            "third": 0.1 * jax.random.normal(third, (size, 4)) / np.sqrt(size),
            "biases": [jnp.zeros(size), jnp.zeros(size), jnp.array([0.0, 0.5, 0.5, -1.0])],
            "prior": jnp.zeros(1),
        }
        return {"params": params}

    def apply(self, variables, inputs):
        params, points = variables["params"], inputs[0]
        x, offsets = describe(*inputs)
        x = jax.nn.relu(x @ params["first"] + params["biases"][0])
        x = jax.nn.relu(x @ params["second"] + params["biases"][1])
        outputs = x @ params["third"] + params["biases"][2]
        moves = jnp.expand_dims(outputs[:, 1:3].T, 2)
        locations = points + jnp.sum(moves * offsets, axis=0)
        scales = NOISE * (jnp.exp(jnp.clip(outputs[:, 3], -3, 2)) + 0.05)
        locations = jnp.concatenate([locations, jnp.zeros((1, 2))])
        scales = jnp.append(scales, SPREAD)
        components = distributions.MultivariateNormalDiagonal(locations, jnp.stack([scales, scales], axis=1))
        return distributions.Mixture(logits=jnp.append(outputs[:, 0], params["prior"] - 5), components=components)


def sample_cluster(key):
    means, points = draw_points(key)
    return (points, nearness(points), means[1:]), means[0]


def draw_means(key, points, labels, clusters):
    members = jax.nn.one_hot(labels, clusters)
    precision = members.sum(axis=0) / NOISE**2 + 1 / SPREAD**2
    centres = (members.T @ points) / NOISE**2 / jnp.expand_dims(precision, 1)
    return centres + jax.random.normal(key, centres.shape) / jnp.expand_dims(jnp.sqrt(precision), 1)


def labels_and_means(points):
    """Labels given means, then means given labels, both from their exact laws; a step of the means alone."""

    def density(means):
        return mixture_density(points, means)

    def step(key, state):
        labels = jax.random.categorical(core.fold(key, 0), log_kernels(points, state.position), axis=1)
        means = draw_means(core.fold(key, 1), points, labels, CLUSTERS)
        return mcmc.MetropolisState(means, density(means)), ()

    return core.Algorithm(lambda means, key: mcmc.MetropolisState(means, density(means)), step)


def one_mean(points, propose):
    """A mean picked at random moves to a draw of `propose(means of the others)`."""

    def density(means):
        return mixture_density(points, means)

    def kernel(cluster):
        def others(blank):
            return propose(jnp.roll(blank, -1 - cluster, axis=0)[:-1])

        block = mcmc.Block(lambda means: means[cluster], lambda means, value: means.at[cluster].set(value))
        return mcmc.block_metropolis(density, others, block)

    def step(key, state):
        return kernel(jax.random.randint(core.fold(key, 0), (), 0, CLUSTERS)).step(core.fold(key, 1), state)

    return core.Algorithm(kernel(0).init, step)


def with_clusters(proposal):
    def build(points):
        near = nearness(points)
        learned = one_mean(points, lambda others: proposal((points, near, others)))
        return mcmc.cycle([labels_and_means(points), learned])

    return build


def by_hand(points):
    """The mean moves near a point picked at random, or to a draw of its prior."""
    locations = jnp.concatenate([points, jnp.zeros((1, 2))])
    scales = jnp.append(jnp.full(POINTS, NOISE / 2), SPREAD)
    components = distributions.MultivariateNormalDiagonal(locations, jnp.stack([scales, scales], axis=1))
    law = distributions.Mixture(logits=jnp.zeros(POINTS + 1), components=components)
    return mcmc.cycle([labels_and_means(points), one_mean(points, lambda others: law)])


def log_marginal(count, total, square):
    """Log density of the points of one cluster, its mean summed out, from their number, sum and sum of squares."""
    precision = count / NOISE**2 + 1 / SPREAD**2
    explained = jnp.sum((total / NOISE**2) ** 2, axis=-1) / precision
    return count * LOG_NORMAL - 0.5 * square / NOISE**2 - jnp.log(SPREAD**2 * precision) + 0.5 * explained


def two_means(points, members, side):
    """Law of the means of two clusters that share the members: centres (2, 2), precisions (2,)."""
    weights = jnp.stack([jnp.where(side, 0.0, members), jnp.where(side, members, 0.0)])
    precisions = weights.sum(axis=1) / NOISE**2 + 1 / SPREAD**2
    return weights @ points / NOISE**2 / jnp.expand_dims(precisions, 1), precisions


def draw_two(key, points, members, side):
    centres, precisions = two_means(points, members, side)
    return centres + jax.random.normal(key, (2, 2)) / jnp.expand_dims(jnp.sqrt(precisions), 1)


def draw_sides(key, points, means):
    kernels = log_kernels(points, means)
    return jax.random.uniform(key, (len(points),)) < jax.nn.sigmoid(kernels[:, 1] - kernels[:, 0])


def launch(key, points, members, scans):
    """Sides (points,) from which a split begins: two points that are apart, then restricted Gibbs scans.

    It depends on which points are to be split and not on how they are split now, so that it is the same both ways.
    """
    keys = jax.random.split(key, 2 * scans + 2)
    inside = jnp.where(members > 0, 0.0, -1e9)
    first = points[jax.random.categorical(keys[0], inside)]
    apart = jnp.sum((points - jnp.expand_dims(first, 0)) ** 2, axis=1)
    second = points[jax.random.categorical(keys[1], inside + jnp.log(apart + 1e-6))]
    means = jnp.stack([first, second])
    for sides_key, means_key in zip(keys[2::2], keys[3::2], strict=True):
        side = draw_sides(sides_key, points, means)
        means = draw_two(means_key, points, members, side)
    return side


def log_pair(points, members, means, side):
    """Log of p(members, two means), sides summed out, over the law of the means given the sides of a launch."""
    centres, precisions = two_means(points, members, side)
    log_q = jnp.log(precisions / (2 * np.pi)) - 0.5 * precisions * jnp.sum((means - centres) ** 2, axis=1)
    prior = -np.log(2 * np.pi * SPREAD**2) - 0.5 * jnp.sum(means**2, axis=1) / SPREAD**2
    return members @ core.logsumexp(log_kernels(points, means), axis=1) + jnp.sum(prior - log_q)


def choices(points, members, balance=0.5):
    """Log probabilities of a pair to merge (clusters^2,), and scores of clusters to split (clusters,).

    Scores are about what two means explain better than one: of points at two ends of their longest axis. Half a score
    balances both directions (Zanella 2020).
    """
    x, y = points.T
    statistics = members.T @ jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y], axis=1)

    def score(statistics):
        count, x, y, xx, xy, yy = jnp.moveaxis(statistics, -1, 0)
        some = jnp.maximum(count, 1)
        xx, xy, yy = xx - x * x / some, xy - x * y / some, yy - y * y / some
        longest = (xx + yy) / 2 + jnp.sqrt((xx - yy) ** 2 / 4 + xy**2 + 1e-12)
        spread = longest / some / NOISE**2
        return balance * count * jnp.maximum(np.log(2), spread / 2 + jnp.log1p(jnp.exp(-2 * spread)))

    pairs = score(jnp.expand_dims(statistics, 0) + jnp.expand_dims(statistics, 1))
    pairs = jnp.where(jnp.tri(len(statistics), k=-1) > 0, -pairs, -jnp.inf).ravel()
    return pairs - core.logsumexp(pairs), score(statistics)


def log_choice(pairs, splits, one, two, split):
    """Log probability of merging these two and splitting that one."""
    low, high = jnp.minimum(one, two), jnp.maximum(one, two)
    return pairs[high * len(splits) + low] + but(splits, one, two)[split]


def but(splits, one, two):
    """Log probabilities of the cluster to split, which is none of the pair."""
    left = splits.at[one].set(-jnp.inf).at[two].set(-jnp.inf)
    return left - core.logsumexp(left)


def split_merge(key, points, means, labels, scans=3):
    """Labels after two clusters became one and a third took the free one, or those before, and the acceptance rate.

    The mean of the merged cluster is summed out on both sides. The means of the two that are split are drawn given a
    launch, then sides given them; going back that is what would have made the old pair.

    Source: Jain & Neal (2004), "A split-merge Markov chain Monte Carlo procedure for the Dirichlet process mixture
    model"; Jain & Neal (2007) for means that are drawn.
    """
    clusters = means.shape[0]
    keys = jax.random.split(key, 8)
    members = jax.nn.one_hot(labels, clusters)
    pairs, splits = choices(points, members)
    one, two = jnp.divmod(jax.random.categorical(keys[0], pairs), clusters)
    swapped = jax.random.bernoulli(keys[1])
    kept, free = jnp.where(swapped, one, two), jnp.where(swapped, two, one)
    split = jax.random.categorical(keys[2], but(splits, kept, free))

    merged, divided = members[:, kept] + members[:, free], members[:, split]
    new_side, old_side = (launch(k, points, group, scans) for k, group in ((keys[3], divided), (keys[4], merged)))
    new, old = draw_two(keys[5], points, divided, new_side), means[jnp.stack([kept, free])]
    side = draw_sides(keys[6], points, new)
    proposed = jnp.where(merged > 0, kept, jnp.where((divided > 0) & side, free, labels))

    def alone(group):
        return log_marginal(group.sum(), group @ points, group @ jnp.sum(points**2, axis=1))

    back = log_choice(*choices(points, jax.nn.one_hot(proposed, clusters)), split, free, kept)
    log_ratio = alone(merged) + log_pair(points, divided, new, new_side) + back
    log_ratio -= alone(divided) + log_pair(points, merged, old, old_side)
    log_ratio -= log_choice(pairs, splits, kept, free, split)
    accepted = jnp.log(jax.random.uniform(keys[7])) < log_ratio
    return jnp.where(accepted, proposed, labels), jnp.exp(jnp.minimum(log_ratio, 0))


def with_splits(points):
    """Labels given means, a split-merge of the labels, means given labels."""

    def density(means):
        return mixture_density(points, means)

    def step(key, state):
        labels = jax.random.categorical(core.fold(key, 0), log_kernels(points, state.position), axis=1)
        labels, rate = split_merge(core.fold(key, 1), points, state.position, labels)
        new = mcmc.MetropolisState(draw_means(core.fold(key, 2), points, labels, CLUSTERS), None)
        new = new._replace(log_density=density(new.position))
        return new, mcmc.MetropolisInfo(rate, rate, new.log_density)

    return core.Algorithm(lambda means, key: mcmc.MetropolisState(means, density(means)), step)


def check_split_merge(draws=200_000, clusters=3, number=6):
    """Split-merges leave the law of labels and means as it was: six points of three clusters, by enumeration.

    From exact draws, three moves, each followed by means given labels.

    Returns:
      p-value of the table of labels, whose expected counts below 20 are put together, and the acceptance rate.
    """
    rng = np.random.default_rng(5)
    points = rng.normal(size=(number, 2)) * np.array([1.2, 0.4])
    states = np.array(list(itertools.product(range(clusters), repeat=number)))
    members = np.eye(clusters)[states]  # (states, points, clusters)
    counts, totals = members.sum(axis=1), np.einsum("snk,nd->skd", members, points)
    precisions = counts / NOISE**2 + 1 / SPREAD**2
    log_p = np.sum(0.5 * np.sum((totals / NOISE**2) ** 2, axis=2) / precisions - np.log(precisions), axis=1)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    drawn = rng.choice(len(p), size=draws, p=p)
    centres = totals / NOISE**2 / precisions[..., None]
    means = centres[drawn] + rng.normal(size=(draws, clusters, 2)) / np.sqrt(precisions[drawn])[..., None]
    there = jnp.asarray(points, jnp.float32)

    @jax.jit
    @jax.vmap
    def move(key, means, labels):
        rates = []
        for index in range(3):
            labels, rate = split_merge(core.fold(key, index, 0), there, means, labels)
            means = draw_means(core.fold(key, index, 1), there, labels, clusters)
            rates.append(rate)
        return labels, sum(rates) / len(rates)

    keys = jax.random.split(jax.random.key(3), draws)
    labels, rate = move(keys, jnp.asarray(means, jnp.float32), jnp.asarray(states[drawn], jnp.int32))
    counts = np.bincount(np.asarray(labels) @ clusters ** np.arange(number - 1, -1, -1), minlength=len(p))
    often = p * draws >= 20
    observed = np.append(counts[often], counts[~often].sum())
    expected = draws * np.append(p[often], p[~often].sum())
    p_value = float(scipy.stats.chisquare(observed, expected).pvalue)
    assert p_value > 1e-4, p_value
    return {"p_value": p_value, "acceptance_rate": float(rate.mean())}


def mixtures(seconds, number, train_steps):
    check = check_split_merge()
    began = time.perf_counter()
    trained = mcmc.train_proposal(jax.random.key(1), sample_cluster, Pointer(), train_steps, batch_size=64)
    training = {
        "steps": train_steps,
        "seconds": time.perf_counter() - began,
        "loss": float(trained.losses[-100:].mean()),
    }
    builders = {
        "learned": with_clusters(trained.proposal),
        "split-merge": with_splits,
        "by hand": by_hand,
        "labels": labels_and_means,
    }
    rows = []
    for index in range(number):
        _, points = draw_points(core.fold(jax.random.key(888), index))
        row = {"data": index, **in_turn(builders, points, seconds)}
        for peer in ("split-merge", "by hand", "labels"):
            row[f"ratio to {peer}"] = row["learned"]["ess_per_s"] / row[peer]["ess_per_s"]
        rows.append(row)
        print(f"data {index}, ESS/s (acceptance, R-hat):", end=" ")
        for name in builders:
            one = row[name]
            print(f"{name} {one['ess_per_s']:.1f} ({one['acceptance_rate']:.2f}, {one['rhat_max']:.2f})", end="; ")
        print(f"ratio to split-merge {row['ratio to split-merge']:.1f}", flush=True)
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
