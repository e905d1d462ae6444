"""Small laws of tokens with exact denoisers, and chains as products of matrices, in NumPy; none of it is jaxprob's."""

import itertools

import jax.numpy as jnp
import numpy as np

VOCABULARY, LENGTH = 3, 3
EXAMPLES = np.array(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))  # (27, 3), the last token fastest


def correlated_law():
    """Probabilities of all examples, (27,), far from independent tokens."""
    return np.random.default_rng(5).dirichlet(np.full(len(EXAMPLES), 0.3))


def independent_law():
    """Probabilities of all examples, (27,), and of each token at each site, (3, 3)."""
    sites = np.random.default_rng(6).dirichlet(np.ones(VOCABULARY), LENGTH)
    return np.prod(sites[np.arange(LENGTH), EXAMPLES], axis=1), sites


def entropy(law):
    return -np.sum(np.where(law > 0, law * np.log(np.where(law > 0, law, 1)), 0))


def states(size):
    """All x_t of a number of states a token, (size^3, 3)."""
    return np.array(list(itertools.product(range(size), repeat=LENGTH)))


def absorbing_matrices(steps):
    """(steps, 4, 4): with the chance 1 / (steps - i + 1) in step i a token becomes the mask, so that i / steps are."""
    made = []
    for i in range(1, steps + 1):
        beta = 1 / (steps - i + 1)
        matrix = (1 - beta) * np.eye(VOCABULARY + 1)
        matrix[:, VOCABULARY] += beta
        made.append(matrix)
    return np.array(made)


def uniform_matrices(steps):
    """(steps, 3, 3): with the chance 1 / (steps - i + 1) in step i a token is drawn anew."""
    betas = [1 / (steps - i + 1) for i in range(1, steps + 1)]
    return np.array([(1 - beta) * np.eye(VOCABULARY) + beta / VOCABULARY for beta in betas])


def product(matrices, first, last):
    """From after step `first` to after step `last`."""
    made = np.eye(matrices.shape[1])
    for matrix in matrices[first:last]:
        made = made @ matrix
    return made


def joint(rows, x0, xt):
    """q(x_t | x_0) of whole examples, from the matrix of one token."""
    return np.prod(rows[x0, xt], axis=-1)


def token_posterior(matrices, x0, xt, first, last):
    """q(x_s | x_t, x_0) of one token, (states,), by Bayes' rule from products of matrices."""
    masses = product(matrices, 0, first)[x0] * product(matrices, first, last)[:, xt]
    return masses / masses.sum()


def reverse_marginals(law, matrices, xt, first, last):
    """p(x_s^i | x_t) for each site, (3, states), of the true reverse process; None where x_t cannot be."""
    rows = product(matrices, 0, last)
    weights = law * np.array([joint(rows, x0, xt) for x0 in EXAMPLES])
    if weights.sum() == 0:
        return None
    made = np.zeros((LENGTH, matrices.shape[1]))
    for weight, x0 in zip(weights / weights.sum(), EXAMPLES, strict=True):
        if weight:
            made += weight * np.array(
                [token_posterior(matrices, a, b, first, last) for a, b in zip(x0, xt, strict=True)]
            )
    return made


def factorized_bound(law, matrices):
    """The bound in discrete time, in nats, of the best model whose steps have independent tokens; a prior without loss.

    Sum over steps of E KL[q(x_s | x_t, x_0), prod_i p(x_s^i | x_t)].
    """
    total, size = 0.0, matrices.shape[1]
    for last in range(1, len(matrices) + 1):
        rows = product(matrices, 0, last)
        for xt in states(size):
            model = reverse_marginals(law, matrices, xt, last - 1, last)
            for p0, x0 in zip(law, EXAMPLES, strict=True):
                mass = p0 * joint(rows, x0, xt)
                if mass == 0:
                    continue
                for site in range(LENGTH):
                    q = token_posterior(matrices, x0[site], xt[site], last - 1, last)
                    some = q > 0
                    total += mass * np.sum(q[some] * np.log(q[some] / model[site][some]))
    return total


def factorized_sampler_law(law, matrices, prior):
    """The law of samples, (27,), of a chain whose steps draw each token by its own true reverse transition."""
    size, everything = matrices.shape[1], states(matrices.shape[1])
    masses = np.prod(prior[everything], axis=1)
    for last in range(len(matrices), 0, -1):
        later = np.zeros(len(everything))
        for mass, xt in zip(masses, everything, strict=True):
            if mass:
                sites = reverse_marginals(law, matrices, xt, last - 1, last)
                later += mass * np.prod(sites[np.arange(LENGTH), everything], axis=1)
        masses = later
    clean = np.all(everything < VOCABULARY, axis=1)
    assert abs(masses[clean].sum() - 1) < 1e-12
    return masses[clean] if size > VOCABULARY else masses


def exact_denoiser(law, kind, alpha=lambda t: 1 - t):
    """`(x, t, condition) -> logits (3, 3)`: of each token of x_0, given all of x_t but its own place."""
    examples, masses = jnp.asarray(EXAMPLES), jnp.asarray(law)

    def denoise(x, t, condition):
        noise = 1 - alpha(t)
        if kind == "mask":
            likelihood = jnp.where(x[None] == VOCABULARY, noise, jnp.where(examples == x[None], 1 - noise, 0.0))
        else:
            likelihood = jnp.where(examples == x[None], 1 - noise, 0.0) + noise / VOCABULARY
        rows = []
        for site in range(LENGTH):
            others = [likelihood[:, other] for other in range(LENGTH) if other != site]
            weights = masses * others[0] * others[1]
            rows.append(jnp.stack([jnp.sum(jnp.where(examples[:, site] == v, weights, 0)) for v in range(VOCABULARY)]))
        return jnp.log(jnp.stack(rows))

    return denoise


def table_of_masks(law):
    """The exact logits for each x_t with masks, (64, 3, 3); for impossible ones any."""
    made = np.zeros((4**LENGTH, LENGTH, VOCABULARY))
    for index, x in enumerate(states(VOCABULARY + 1)):
        fits = (x[None] == VOCABULARY) | (x[None] == EXAMPLES)
        for site in range(LENGTH):
            weights = law * np.all(np.delete(fits, site, axis=1), axis=1)
            made[index, site] = np.log([weights[EXAMPLES[:, site] == v].sum() for v in range(VOCABULARY)])
    return made


def counts(samples):
    """How often each example is among samples (sample, 3), (27,)."""
    index = np.asarray(samples) @ VOCABULARY ** np.arange(LENGTH)[::-1]
    return np.bincount(index, minlength=len(EXAMPLES))


def z_of_counts(found, law):
    """Pearson's statistic of counts against a law as a z-score, by Wilson and Hilferty; rare cells are put together."""
    expected = law * found.sum()
    rare = expected < 5
    assert found[law == 0].sum() == 0
    expected, found = (np.append(values[~rare], values[rare].sum()) for values in (expected, found))
    some = expected > 0
    statistic, freedom = np.sum((found[some] - expected[some]) ** 2 / expected[some]), some.sum() - 1
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
