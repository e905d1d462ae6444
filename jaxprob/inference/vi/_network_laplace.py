"""The Laplace approximation of a network's parameters, with a generalised Gauss-Newton curvature.

The curvature of the log likelihood is J^T H J with J the Jacobian of the outputs and H the negative Hessian of the log
likelihood with respect to them: positive semi-definite wherever training stopped. J is never formed: columns, diagonal
and factors come from Jacobian products of some examples at a time.

Source: Daxberger et al. (2021), "Laplace redux: effortless Bayesian deep learning"; Ritter, Botev & Barber (2018), "A
scalable Laplace approximation for neural networks", for Kronecker factors; Kristiadi, Hein & Hennig (2020) for the last
layer; MacKay (1992), "A practical Bayesian framework for backpropagation networks", for the evidence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.vi._layout import Layout

STRUCTURES = ("full", "diagonal", "kronecker")
COLUMNS = 64  # of a full curvature that are computed at once


class _Kronecker(NamedTuple):
    """The eigenvalues and vectors of the two factors of a leaf's curvature, A x B / scale."""

    left: tuple[jax.Array, jax.Array]
    right: tuple[jax.Array, jax.Array]
    scale: jax.Array


class Prediction(NamedTuple):
    """Outputs of the linearised network for one example.

    Attributes:
      mean: (output,), those of the parameters that were trained.
      covariance: (output, output), by the uncertainty of the parameters.
    """

    mean: jax.Array
    covariance: jax.Array


@core.pytree
class NetworkLaplace:
    """A Gaussian over a network's parameters, around those that were trained.

    Attributes:
      params: pytree, the mean.
      log_evidence: (), of the data under the approximation: what prior precisions and architectures are chosen by.
      curvature: the factor of the precision: (size, size), lower triangular; (size,); or Kronecker factors by leaf.
      prior_precision: ().
      apply: `(params, x) -> outputs`.
      chosen: places of the leaves that are uncertain, among those of `params`.
      structure: "full", "diagonal" or "kronecker".
    """

    params: Any
    log_evidence: jax.Array
    curvature: Any
    prior_precision: jax.Array
    apply: Callable[..., Any] = core.static()
    chosen: tuple[int, ...] = core.static()
    structure: str = core.static()

    def sample(self, key: core.Key) -> Any:
        """One draw of the parameters."""
        subset = _Subset(self.params, self.chosen)
        key = core.as_key(key, "sample")
        noise = [core.random.normal(core.fold(key, i), leaf.shape, leaf.dtype) for i, leaf in enumerate(subset.leaves)]
        moved = self._root(noise)
        return subset.put([leaf + step for leaf, step in zip(subset.leaves, moved, strict=True)])

    def predict(self, x: Any) -> Prediction:
        """The outputs of the network linearised in its parameters, for one example `x`; `jax.vmap` for many.

        Source: Immer, Korzepa & Bauer (2021), "Improving predictions of Bayesian neural nets via local linearization".
        """
        subset = _Subset(self.params, self.chosen)
        outputs, pull = jax.vjp(lambda leaves: self.apply(subset.put(leaves), x), subset.leaves)
        rows = jax.vmap(lambda e: pull(e)[0])(jnp.eye(outputs.size, dtype=outputs.dtype))
        white = jax.vmap(lambda row: _flat(self._root(row, transpose=True)))(rows)
        return Prediction(outputs, core.matmul(white, white.T))

    def _root(self, leaves: list[jax.Array], transpose: bool = False) -> list[jax.Array]:
        """R v, or R^T v, for the covariance R R^T."""
        if self.structure == "kronecker":
            pairs = zip(leaves, self.curvature, strict=True)
            # Q D^-1/2 Q^T is symmetric: its own transpose.
            return [_kronecker_root(leaf, factors, self.prior_precision) for leaf, factors in pairs]
        vector = _flat(leaves)
        if self.structure == "diagonal":
            return _as(vector / self.curvature, leaves)
        return _as(core.solve_triangular(self.curvature, vector, not transpose, vector=True), leaves)


class _Subset:
    """The leaves of parameters that are uncertain, and how they go back among the others."""

    def __init__(self, params: Any, chosen: tuple[int, ...]) -> None:
        self.every, self.structure = jax.tree.flatten(params)
        self.chosen = chosen
        self.leaves = [self.every[i] for i in chosen]

    def put(self, leaves: Sequence[jax.Array]) -> Any:
        every = list(self.every)
        for i, leaf in zip(self.chosen, leaves, strict=True):
            every[i] = leaf
        return jax.tree.unflatten(self.structure, every)


def _flat(leaves: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])


def _as(vector: jax.Array, leaves: Sequence[jax.Array]) -> list[jax.Array]:
    ends = [0]
    for leaf in leaves:
        ends.append(ends[-1] + leaf.size)
    return [vector[a:b].reshape(leaf.shape) for a, b, leaf in zip(ends[:-1], ends[1:], leaves, strict=True)]


def network_laplace(
    apply: Callable[..., Any],
    params: Any,
    xs: Any,
    ys: Any,
    log_likelihood: Callable[..., Any],
    *,
    prior_precision: Any = 1.0,
    structure: str = "kronecker",
    subset: str | Sequence[str] = "*",
    batch: int = 128,
) -> NetworkLaplace:
    r"""The Laplace approximation of a trained network, under a prior N(0, I / prior_precision).

    $$precision = \sum_i J_i^T H_i J_i + \delta I, \quad H_i = -\nabla^2_f \log p(y_i | f(x_i))$$

    Args:
      apply: `(params, x) -> outputs (output,)`, of one example.
      params: pytree, trained to a mode of log likelihood plus log prior.
      xs: pytree (example, ...).
      ys: pytree (example, ...).
      log_likelihood: `(outputs, y) -> scalar`, concave in the outputs, as of exponential families.
      prior_precision: (), delta.
      structure: "full", for some thousands of parameters; "diagonal"; or "kronecker": for each leaf, as a matrix (in,
        out), the product A x B of two small matrices that has the curvature's trace and is exact for one example.
      subset: glob patterns of the leaves that are uncertain, such as `"Dense_2.*"` for a last layer; others are fixed.
      batch: examples at once.

    Returns:
      a `NetworkLaplace`.

    Raises:
      ValueError: for data of different lengths, another `structure`, or a pattern without a leaf.

    >>> apply = lambda w, x: w * x
    >>> log_likelihood = lambda f, y: -0.5 * jnp.sum((y - f) ** 2)
    >>> xs = jnp.array([[1.0], [2.0]])
    >>> found = network_laplace(apply, jnp.ones(1), xs, xs, log_likelihood, structure="full")
    >>> float(found.predict(jnp.ones(1)).covariance[0, 0])  # 1 / (1 + 4 + 1)
    0.1666...
    """
    name = "network_laplace"
    if structure not in STRUCTURES:
        raise core.bad_value(name, "structure", core.describe(structure), f"one of {STRUCTURES}")
    core.check_whole(name, batch=batch)
    params = jax.tree.map(jnp.asarray, params)
    layout = Layout.of(params)
    patterns = [subset] if isinstance(subset, str) else list(subset)
    places = core.match_patterns(name, "subset pattern {}", patterns, layout.names)
    chosen = tuple(i for i, place in enumerate(places) if place < len(patterns))
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((xs, ys))}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise core.bad_value(name, "xs and ys", core.describe((xs, ys)), "arrays (example, ...) of one length")
    delta = known_number(name, "prior_precision", prior_precision, lambda x: 0 < x < math.inf, "a positive number")
    delta = delta.astype(layout.dtype)
    log_evidence, factor = _curvature(apply, log_likelihood, structure, chosen, batch, params, xs, ys, delta)
    return NetworkLaplace(params, log_evidence, factor, delta, apply, chosen, structure)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _curvature(
    apply: Any, log_likelihood: Any, structure: str, chosen: Any, batch: int, params: Any, xs: Any, ys: Any, delta: Any
) -> tuple[jax.Array, Any]:
    """The log evidence and the factor of the precision."""
    subset = _Subset(params, chosen)

    def of_leaves(leaves: list[jax.Array], x: Any) -> jax.Array:
        outputs = apply(subset.put(leaves), x)
        if jnp.ndim(outputs) != 1:
            raise core.bad_value("network_laplace", "apply", f"outputs of shape {outputs.shape}", "shape (output,)")
        return outputs

    def root_of_hessian(outputs: jax.Array, y: Any) -> jax.Array:
        """R (output, column) with R R^T = H; negative eigenvalues, which rounding makes, count as zero."""
        values, vectors = jnp.linalg.eigh(-jax.hessian(lambda f: log_likelihood(f, y))(outputs))
        return vectors * jnp.sqrt(jnp.maximum(values, 0))[None]

    def rows(x: Any, y: Any) -> list[jax.Array]:
        """R^T J for one example: a list by leaf of (column, ...)."""
        outputs, pull = jax.vjp(lambda leaves: of_leaves(leaves, x), subset.leaves)
        return jax.vmap(lambda column: pull(column)[0])(root_of_hessian(outputs, y).T)

    def total(one: Callable[[Any, Any], Any]) -> Any:
        """The sum of what `one` makes of each example, `batch` examples at a time."""
        count = jax.tree.leaves(ys)[0].shape[0]
        whole = count - count % batch

        def add(so_far: Any, data: Any) -> tuple[Any, None]:
            return jax.tree.map(lambda a, b: a + jnp.sum(b, axis=0), so_far, jax.vmap(one)(*data)), None

        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, *_example(xs, ys)))
        pieces = jax.tree.map(lambda a: jnp.asarray(a)[:whole].reshape(-1, batch, *jnp.shape(a)[1:]), (xs, ys))
        found = scan.scan(add, zero, pieces)[0] if whole else zero
        rest = jax.tree.map(lambda a: jnp.asarray(a)[whole:], (xs, ys))
        return add(found, rest)[0] if whole < count else found

    log_p = total(lambda x, y: log_likelihood(of_leaves(subset.leaves, x), y))
    size = sum(leaf.size for leaf in subset.leaves)
    vector = _flat(subset.leaves)
    factor: Any
    if structure == "diagonal":
        squares = total(lambda x, y: [jnp.sum(row**2, axis=0) for row in rows(x, y)])
        precision = _flat(squares) + delta
        factor, log_det = jnp.sqrt(precision), jnp.sum(jnp.log(precision))
    elif structure == "full":

        def product(v: jax.Array) -> jax.Array:
            def one(x: Any, y: Any) -> list[jax.Array]:
                function = lambda leaves: of_leaves(leaves, x)  # noqa: E731
                outputs, forward = jax.jvp(function, (subset.leaves,), (_as(v, subset.leaves),))
                root = root_of_hessian(outputs, y)
                return jax.vjp(function, subset.leaves)[1](core.matvec(root, core.matvec(root.T, forward)))[0]

            return _flat(total(one))

        eye = jnp.eye(size, dtype=vector.dtype)
        matrix = core.symmetrize(jax.lax.map(product, eye, batch_size=COLUMNS))
        factor = core.cholesky(matrix + delta * eye)
        log_det = core.log_determinant(factor)
    else:

        def sides(x: Any, y: Any) -> list[tuple[jax.Array, jax.Array]]:
            both = []
            for row in rows(x, y):
                matrix = row.reshape(row.shape[0], -1, row.shape[-1] if row.ndim > 1 else 1)
                left = jnp.einsum("kab,kcb->ac", matrix, matrix, precision="highest")
                both.append((left, jnp.einsum("kab,kac->bc", matrix, matrix, precision="highest")))
            return both

        factor = [
            _Kronecker(_eigen(a), _eigen(b), jnp.maximum(jnp.trace(a), jnp.finfo(a.dtype).tiny))
            for a, b in total(sides)
        ]
        log_det = jnp.sum(jnp.stack([jnp.sum(jnp.log(_kronecker_values(f) + delta)) for f in factor]))
    # log p(y) + log p(w) + size / 2 log(2 pi) - 1/2 log det precision, where 2 pi of the prior cancels.
    log_evidence = log_p - 0.5 * delta * jnp.sum(vector**2) + 0.5 * size * jnp.log(delta) - 0.5 * log_det
    return log_evidence, factor


def _example(xs: Any, ys: Any) -> Any:
    def first(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf))

    return jax.tree.map(first, (xs, ys))


def _eigen(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.maximum(values, 0), vectors


def _kronecker_values(factors: _Kronecker) -> jax.Array:
    """Eigenvalues of the curvature of a leaf, (rows, columns)."""
    return factors.left[0][:, None] * factors.right[0][None] / factors.scale


def _kronecker_root(leaf: jax.Array, factors: _Kronecker, delta: jax.Array) -> jax.Array:
    """Q D^-1/2 Q^T v for the eigenvectors Q and eigenvalues D of the precision of a leaf."""
    left, right = factors.left[1], factors.right[1]
    matrix = leaf.reshape(left.shape[0], right.shape[0])
    inner = core.matmul(core.matmul(left.T, matrix), right) / jnp.sqrt(_kronecker_values(factors) + delta)
    return core.matmul(core.matmul(left, inner), right.T).reshape(leaf.shape)
