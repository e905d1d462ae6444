"""Linear-Gaussian steps as elements of a monoid: filtering and smoothing of state-space models in logarithmic depth.

Only `combine` and the identity, for covariances and for their square roots. In float32 take square roots where the
prior is vague: a covariance with a variance of 1e6 in one direction and 1 in another leaves no digits to the smaller.
Source: Särkkä and García-Fernández (2021), "Temporal parallelization of Bayesian smoothers"; for square roots
Yaghoobi, Corenflos, Hassan and Särkkä (2022), "Parallel square-root statistical linear regression for inference in
nonlinear state space models".
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprob.core import matmul, matvec, solve_triangular, symmetrize, tria


def eye_like(matrix: jax.Array) -> jax.Array:
    """The identity matrix with the shape and dtype of a square one; inside `shard_map` it varies as that does."""
    return jnp.zeros_like(matrix) + jnp.eye(matrix.shape[-1], dtype=matrix.dtype)


class FilterElement(NamedTuple):
    """Steps j + 1 to k of a filter, given the state x_j; of `gaussian_filter`.

    `p(x_k | y_{j+1:k}, x_j) = N(A x_j + b, C)`, and `p(y_{j+1:k} | x_j)` is proportional to
    `exp(eta^T x_j - x_j^T J x_j / 2)`. With `G = (I + C1 J2)^-1` the product of two is

        A = A2 G A1      b = A2 G (b1 + C1 eta2) + b2          C = A2 G C1 A2^T + C2
                         eta = A1^T G^T (eta2 - J2 b1) + eta1   J = A1^T G^T J2 A1 + J1

    Neither C nor J need be invertible. Where `A` of the first element is zero (its state is the prior), the prefixes'
    `b` and `C` are the filter's means and covariances. A missing observation has `eta` and `J` zero.

    Attributes:
      A: (n, n).
      b: (n,).
      C: (n, n), symmetric positive semi-definite.
      eta: (n,).
      J: (n, n), symmetric positive semi-definite.

    >>> zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    >>> prior = FilterElement(zero, zero[0], one, zero[0], zero)  # N(0, 1)
    >>> seen = FilterElement(one, zero[0], zero, 2 * one[0], one)  # y = 2 with variance 1, and no move
    >>> posterior = combine_filter(prior, seen)
    >>> posterior.b.item(), posterior.C.item()
    (1.0, 0.5)
    """

    A: jax.Array
    b: jax.Array
    C: jax.Array
    eta: jax.Array
    J: jax.Array


def combine_filter(before: FilterElement, after: FilterElement) -> FilterElement:
    """The product of two filter elements, by one LU decomposition of `I + C1 J2`.

    `P = G C1` is the covariance of the state between the two given all of their observations, and
    `G (b1 + C1 eta2) = b1 + P (eta2 - J2 b1)` its mean, with nothing larger than its terms.
    """
    n = before.b.shape[0]
    inverse_of = eye_like(before.C) + matmul(before.C, after.J)
    solved = jnp.linalg.solve(inverse_of, jnp.concatenate([before.A, before.C], 1))
    GA, P = solved[:, :n], symmetrize(solved[:, n:])
    surprise = after.eta - matvec(after.J, before.b)
    return FilterElement(
        A=matmul(after.A, GA),
        b=matvec(after.A, before.b + matvec(P, surprise)) + after.b,
        C=symmetrize(matmul(matmul(after.A, P), after.A.T) + after.C),
        eta=matvec(GA.T, surprise) + before.eta,
        J=symmetrize(matmul(GA.T, matmul(after.J, before.A)) + before.J),
    )


def filter_identity(like: FilterElement) -> FilterElement:
    """No step at all: A is the identity matrix, and the rest zero."""
    b, C, eta, J = (jnp.zeros_like(x) for x in like[1:])
    return FilterElement(eye_like(like.A), b, C, eta, J)


class SquareRootFilterElement(NamedTuple):
    """A `FilterElement` with `C = U U^T` and `J = Z Z^T`; of `square_root_gaussian_filter`.

    Any square roots will do, of any rank. What `combine` returns is lower triangular, so that associativity and the
    identity hold for `U U^T` and `Z Z^T`.

    Attributes:
      A: (n, n).
      b: (n,).
      U: (n, n).
      eta: (n,).
      Z: (n, n).
    """

    A: jax.Array
    b: jax.Array
    U: jax.Array
    eta: jax.Array
    Z: jax.Array


def combine_square_root_filter(
    before: SquareRootFilterElement, after: SquareRootFilterElement
) -> SquareRootFilterElement:
    """The product of two filter elements, by one QR decomposition.

    It gives the square root `[[X11, 0], [X21, X22]]` of `[[I + U^T J U, U^T J], [J U, J]]`, with U of the first element
    and J of the second. No singular value of X11 is below 1. With `W = X11^-1 U^T`:
    `P = W^T W`, `G = I - W^T X21^T`, and `(I + J C)^-1 J = X22 X22^T`.
    """
    n = before.b.shape[0]
    eye = eye_like(before.U)
    root = tria(jnp.block([[matmul(before.U.T, after.Z), eye], [after.Z, jnp.zeros_like(eye)]]))
    # X22 has entries above its diagonal in its derivative, where Z is singular: it must not be cut to a triangle.
    X11, X21, X22 = root[:n, :n], root[n:, :n], root[n:, n:]
    W = solve_triangular(X11, before.U.T)
    GA = before.A - matmul(W.T, matmul(X21.T, before.A))
    # G (b1 + C1 eta2) would cancel where C1 is large: in float32 and with a vague prior that costs two or three digits.
    surprise = after.eta - matvec(after.Z, matvec(after.Z.T, before.b))
    return SquareRootFilterElement(
        A=matmul(after.A, GA),
        b=matvec(after.A, before.b + matvec(W.T, matvec(W, surprise))) + after.b,
        U=tria(jnp.concatenate([matmul(after.A, W.T), after.U], 1)),
        eta=matvec(GA.T, surprise) + before.eta,
        Z=tria(jnp.concatenate([matmul(before.A.T, X22), before.Z], 1)),
    )


def square_root_filter_identity(like: SquareRootFilterElement) -> SquareRootFilterElement:
    """No step at all: A is the identity matrix, and the rest zero."""
    b, U, eta, Z = (jnp.zeros_like(x) for x in like[1:])
    return SquareRootFilterElement(eye_like(like.A), b, U, eta, Z)


class SmootherElement(NamedTuple):
    """The state x_j given a later one and the observations up to there; of `gaussian_smoother`.

    `p(x_j | y_{1:k}, x_k) = N(E x_k + g, L)`, j < k. Smoothing goes back in time, so that of two elements `before` is
    the later in time: `E = E2 E1`, `g = E2 g1 + g2`, `L = E2 L1 E2^T + L2`, where 2 is `after`, the earlier in time.
    The last state has E zero, and its filtered mean and covariance for g and L; then the products of a reverse scan
    have the smoother's means and covariances for g and L.

    Attributes:
      E: (n, n).
      g: (n,).
      L: (n, n), symmetric positive semi-definite.

    >>> one = jnp.ones((1, 1))
    >>> last, earlier = SmootherElement(0 * one, 4 * one[0], one), SmootherElement(0.5 * one, one[0], one)
    >>> smoothed = combine_smoother(last, earlier)
    >>> smoothed.g.item(), smoothed.L.item()
    (3.0, 1.25)
    """

    E: jax.Array
    g: jax.Array
    L: jax.Array


def combine_smoother(before: SmootherElement, after: SmootherElement) -> SmootherElement:
    """The product of two smoother elements; `before` is later in time."""
    return SmootherElement(
        E=matmul(after.E, before.E),
        g=matvec(after.E, before.g) + after.g,
        L=symmetrize(matmul(matmul(after.E, before.L), after.E.T) + after.L),
    )


def smoother_identity(like: SmootherElement) -> SmootherElement:
    """The same state: E is the identity matrix, and the rest zero."""
    return SmootherElement(eye_like(like.E), jnp.zeros_like(like.g), jnp.zeros_like(like.L))


class SquareRootSmootherElement(NamedTuple):
    """A `SmootherElement` with `L = D D^T`; of `square_root_gaussian_smoother`.

    Attributes:
      E: (n, n).
      g: (n,).
      D: (n, n), any square root; `combine` returns a lower-triangular one.
    """

    E: jax.Array
    g: jax.Array
    D: jax.Array


def combine_square_root_smoother(
    before: SquareRootSmootherElement, after: SquareRootSmootherElement
) -> SquareRootSmootherElement:
    """The product of two smoother elements; `before` is later in time."""
    return SquareRootSmootherElement(
        E=matmul(after.E, before.E),
        g=matvec(after.E, before.g) + after.g,
        D=tria(jnp.concatenate([matmul(after.E, before.D), after.D], 1)),
    )


def square_root_smoother_identity(like: SquareRootSmootherElement) -> SquareRootSmootherElement:
    """The same state: E is the identity matrix, and the rest zero."""
    return SquareRootSmootherElement(eye_like(like.E), jnp.zeros_like(like.g), jnp.zeros_like(like.D))
