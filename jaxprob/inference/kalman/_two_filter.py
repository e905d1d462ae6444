"""The two-filter smoother: what was observed up to a time, times what is observed after it.

The backward filter carries what the observations after a time say of the state there, as information: nothing at the
end. Neither filter needs the other, and no covariance is inverted, so that noise may be singular.

Source: Fraser & Potter (1969), "The optimum linear smoother as a combination of two optimum linear filters".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.kalman._parallel import element
from jaxprob.inference.kalman._square_root import Moments, product, triangularize
from jaxprob.inference.kalman._steps import Step, Steps
from jaxprob.scan import monoids


def whole(steps: Steps, moments: Moments) -> Moments:
    """Moments of all states given everything observed and the diffuse numbers, from the filtered ones."""
    every = steps.everywhere
    before, after = (Step(*(cut(leaf) for leaf in every)) for cut in (lambda x: x[:-1], lambda x: x[1:]))
    elements = jax.vmap(element)(before, after)
    # The diffuse numbers are of the first state: they move nothing that is told of a state by what comes after it.
    elements = elements._replace(b=elements.b[..., 0], eta=elements.eta[..., 0])
    n = moments.factor.shape[1]
    nothing = jnp.zeros((n,), moments.mean.dtype), jnp.zeros((n, n), moments.mean.dtype)

    def back(later: tuple[jax.Array, jax.Array], one: monoids.SquareRootFilterElement) -> tuple:
        ahead = jax.tree.map(jnp.zeros_like, one)._replace(eta=later[0], Z=later[1])
        found = monoids.square_root_gaussian_filter.combine(one, ahead)
        return (found.eta, found.Z), (found.eta, found.Z)

    told = scan.scan(back, nothing, elements, reverse=True)[1]
    vectors, roots = (jnp.concatenate([all, jnp.expand_dims(none, 0)]) for all, none in zip(told, nothing, strict=True))
    times = moments.mean.shape[0]
    return jax.vmap(_both)(moments, vectors[:times], roots[:times])


def _both(moments: Moments, vector: jax.Array, root: jax.Array) -> Moments:
    """A normal law times `exp(vector^T x - |root^T x|^2 / 2)`."""
    mean, factor = moments
    seen = product(factor.T, root)
    # Of I + L^T J L: no singular value is below 1, whatever either filter knows.
    pivot = triangularize(jnp.concatenate([jnp.eye(factor.shape[0], dtype=factor.dtype), seen], 1))
    spread = core.solve_triangular(pivot, factor.T).T
    gap = -product(root, product(root.T, mean))
    gap = gap.at[:, 0].add(vector)
    return Moments(mean + product(spread, product(spread.T, gap)), triangularize(spread))
