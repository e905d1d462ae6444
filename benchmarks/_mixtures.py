"""Mixtures of ten Gaussians in the plane, and the moves of their means: learned, by hand, and split-merge.

Points are many, labels are summed out. `check_split_merge` holds the third against enumeration of a small problem.

Source: Jain & Neal (2004), "A split-merge Markov chain Monte Carlo procedure for the Dirichlet process mixture model",
for a fixed number of clusters.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxprob import core, distributions
from jaxprob.inference import mcmc

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
    sums = jnp.concatenate([left, gains, left * points, jnp.ones_like(left)], axis=1)
    # One product of matrices for both widths, and for all chains under `vmap`.
    sums = (near.reshape(-1, len(points)) @ sums).reshape(2, len(points), -1)
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


def draw_labels(key, points, means):
    """Labels given means, by one uniform for each point."""
    shares = jnp.cumsum(jax.nn.softmax(log_kernels(points, means), axis=1), axis=1)
    below = jax.random.uniform(key, (len(points), 1)) >= shares
    return jnp.minimum(jnp.sum(below, axis=1), len(means) - 1)


def labels_and_means(points):
    """Labels given means, then means given labels, both from their exact laws; a step of the means alone."""

    def density(means):
        return mixture_density(points, means)

    def step(key, state):
        labels = draw_labels(core.fold(key, 0), points, state.position)
        means = draw_means(core.fold(key, 1), points, labels, CLUSTERS)
        return mcmc.MetropolisState(means, density(means)), ()

    return core.Algorithm(lambda means, key: mcmc.MetropolisState(means, density(means)), step)


def log_pick(points, means, balance=0.3, uniform=0.1):
    """Log probabilities (clusters,) of the mean to move: mostly one whose points the others explain as well."""
    left = 1 - jax.nn.softmax(log_kernels(points, means), axis=1)
    scores = balance * jnp.sum(jnp.log(jnp.maximum(left, 1e-6)), axis=0)
    scores -= core.logsumexp(scores)
    return jnp.logaddexp(scores + np.log1p(-uniform), np.log(uniform / CLUSTERS))


def one_mean(points, propose):
    """A mean moves to a draw of `propose(means of the others)`; which one depends on where all of them are.

    Given the pick, a Metropolis step for the density times the probability of that pick leaves the density itself as it
    is, since the picks from one place add up to one.
    """

    def density(means):
        return mixture_density(points, means)

    def step(key, state):
        cluster = jax.random.categorical(core.fold(key, 0), log_pick(points, state.position))

        def others(blank):
            return propose(jnp.roll(blank, -1 - cluster, axis=0)[:-1])

        def picked(means):
            return density(means) + log_pick(points, means)[cluster]

        block = mcmc.Block(lambda means: means[cluster], lambda means, value: means.at[cluster].set(value))
        kernel = mcmc.block_metropolis(picked, others, block)
        new, info = kernel.step(core.fold(key, 1), kernel.init(state.position, core.fold(key, 2)))
        return mcmc.MetropolisState(new.position, density(new.position)), info

    return core.Algorithm(lambda means, key: mcmc.MetropolisState(means, density(means)), step)


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
    balances both directions (Zanella 2020). None of it is what Jain and Neal do, who pick two points at random: then
    clusters come by their sizes, here plus one, since some may be empty.
    """
    sizes = members.sum(axis=0) + 1
    if balance:
        pairs, splits = worth(points, members, balance)
    else:
        pairs = jnp.log(jnp.expand_dims(sizes, 0) * jnp.expand_dims(sizes, 1))
        splits = 2 * jnp.log(sizes)
    pairs = jnp.where(jnp.tri(len(sizes), k=-1) > 0, pairs, -jnp.inf).ravel()
    return pairs - core.logsumexp(pairs), splits


def worth(points, members, balance):
    """Scores of pairs to merge (clusters, clusters) and of clusters to split (clusters,)."""
    x, y = points.T
    statistics = members.T @ jnp.stack([jnp.ones_like(x), x, y, x * x, x * y, y * y], axis=1)

    def score(statistics):
        count, x, y, xx, xy, yy = jnp.moveaxis(statistics, -1, 0)
        some = jnp.maximum(count, 1)
        xx, xy, yy = xx - x * x / some, xy - x * y / some, yy - y * y / some
        longest = (xx + yy) / 2 + jnp.sqrt((xx - yy) ** 2 / 4 + xy**2 + 1e-12)
        spread = longest / some / NOISE**2
        return balance * count * jnp.maximum(np.log(2), spread / 2 + jnp.log1p(jnp.exp(-2 * spread)))

    return -score(jnp.expand_dims(statistics, 0) + jnp.expand_dims(statistics, 1)), score(statistics)


def log_choice(pairs, splits, one, two, split):
    """Log probability of merging these two and splitting that one."""
    low, high = jnp.minimum(one, two), jnp.maximum(one, two)
    return pairs[high * len(splits) + low] + but(splits, one, two)[split]


def but(splits, one, two):
    """Log probabilities of the cluster to split, which is none of the pair."""
    left = splits.at[one].set(-jnp.inf).at[two].set(-jnp.inf)
    return left - core.logsumexp(left)


def split_merge(key, points, means, labels, scans=3, balance=0.5):
    """Labels after two clusters became one and a third took the free one, or those before, and the acceptance rate.

    The mean of the merged cluster is summed out on both sides. The means of the two that are split are drawn given a
    launch, then sides given them; going back that is what would have made the old pair.

    Source: Jain & Neal (2004), "A split-merge Markov chain Monte Carlo procedure for the Dirichlet process mixture
    model"; Jain & Neal (2007) for means that are drawn.
    """
    clusters = means.shape[0]
    keys = jax.random.split(key, 8)
    members = jax.nn.one_hot(labels, clusters)
    pairs, splits = choices(points, members, balance)
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

    back = log_choice(*choices(points, jax.nn.one_hot(proposed, clusters), balance), split, free, kept)
    log_ratio = alone(merged) + log_pair(points, divided, new, new_side) + back
    log_ratio -= alone(divided) + log_pair(points, merged, old, old_side)
    log_ratio -= log_choice(pairs, splits, kept, free, split)
    accepted = jnp.log(jax.random.uniform(keys[7])) < log_ratio
    return jnp.where(accepted, proposed, labels), jnp.exp(jnp.minimum(log_ratio, 0))


def with_splits(points, balance):
    """Labels given means, a split-merge of the labels, means given labels."""

    def density(means):
        return mixture_density(points, means)

    def step(key, state):
        labels = draw_labels(core.fold(key, 0), points, state.position)
        labels, rate = split_merge(core.fold(key, 1), points, state.position, labels, balance=balance)
        new = mcmc.MetropolisState(draw_means(core.fold(key, 2), points, labels, CLUSTERS), None)
        new = new._replace(log_density=density(new.position))
        return new, mcmc.MetropolisInfo(rate, rate, new.log_density)

    return core.Algorithm(lambda means, key: mcmc.MetropolisState(means, density(means)), step)


def check_split_merge(balance, draws=200_000, clusters=3, number=6):
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
            labels, rate = split_merge(core.fold(key, index, 0), there, means, labels, balance=balance)
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
