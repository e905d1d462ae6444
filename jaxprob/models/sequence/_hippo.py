"""Where the eigenvalues of a state-space layer begin: the HiPPO matrix, its normal part, and what approximates them.

Computed once in float64 NumPy; a layer takes its first parameters from here.
Source: Gu, Dao, Ermon, Rudra and Re (2020), "HiPPO"; Gu, Goel and Re (2022), "Efficiently modeling long sequences with
structured state spaces", theorem 1; Gu, Gupta, Goel and Re (2022), "On the parameterization and initialization of
diagonal state space models", section 4.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from jaxprob import core

INITIALIZATIONS = ("lin", "inv", "legs", "real", "random")


class NormalPlusLowRank(NamedTuple):
    """The HiPPO matrix as `A = V diag(eigenvalues) V^* - low_rank low_rank^T`, all NumPy arrays of double precision.

    Attributes:
      eigenvalues: (n,), complex, of the normal part; by imaginary part, ascending.
      low_rank: (n,), the vector whose outer product is taken away.
      input: (n,), the input vector of the system.
      eigenvectors: (n, n), complex, V: unitary.
    """

    eigenvalues: np.ndarray
    low_rank: np.ndarray
    input: np.ndarray
    eigenvectors: np.ndarray


def hippo_legs(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The system x' = A x + B u that keeps the coefficients of the past in Legendre polynomials (HiPPO-LegS).

    A_ij = -sqrt((2 i + 1) (2 j + 1)) below the diagonal, -(i + 1) on it, 0 above; B_i = sqrt(2 i + 1).

    Args:
      n: size of the state.

    Returns:
      A (n, n) and B (n,), float64 NumPy arrays.

    Raises:
      ValueError: if `n` is not a positive whole number.

    >>> a, b = hippo_legs(2)
    >>> a.round(3).tolist(), b.round(3).tolist()
    ([[-1.0, 0.0], [-1.732, -2.0]], [1.0, 1.732])

    Source: Gu et al. (2020), "HiPPO", theorem 2, without the factor 1 / t.
    """
    core.check_whole("sequence.hippo_legs", n=n)
    root = np.sqrt(2.0 * np.arange(n) + 1.0)
    a = np.tril(-np.outer(root, root), -1) - np.diag(np.arange(n) + 1.0)
    return a, root


def normal_plus_low_rank(n: int) -> NormalPlusLowRank:
    """The HiPPO-LegS matrix taken apart: a normal matrix, whose eigenvalues all have the real part -1/2, less rank one.

    The vector is P_i = sqrt(i + 1/2), and A + P P^T is -1/2 on the diagonal and skew-symmetric off it. Diagonal layers
    keep the normal part, with half the input vector, whose impulse responses approach those of the whole as n grows.

    Args:
      n: size of the state.

    Raises:
      ValueError: if `n` is not a positive whole number.

    >>> normal_plus_low_rank(4).eigenvalues.real.round(6).tolist()
    [-0.5, -0.5, -0.5, -0.5]

    Source: Gu, Goel and Re (2022), theorem 1 and appendix C.1; Gu et al. (2022), theorem 3, for half the input.
    """
    core.check_whole("sequence.normal_plus_low_rank", n=n)
    a, b = hippo_legs(n)
    vector = np.sqrt(np.arange(n) + 0.5)
    skew = a + np.outer(vector, vector) + 0.5 * np.eye(n)
    # i times a skew-symmetric matrix is Hermitian, so that the eigenvectors are orthogonal to rounding.
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    return NormalPlusLowRank(-0.5 + 1j * frequencies, vector, b, vectors)


@functools.lru_cache(maxsize=32)
def legs_modes(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Modes of the normal part that have a positive frequency: eigenvalues (n / 2,) and eigenvectors (n, n / 2).

    The other half are their conjugates, as long as `n` is even.
    """
    whole = normal_plus_low_rank(n)
    return whole.eigenvalues[n // 2 :], whole.eigenvectors[:, n // 2 :]


def initial_modes(function: str, initialization: str, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Rates of decay and angular frequencies, (n / 2,) each, of the kept half of n modes in conjugate pairs.

    Returns:
      the rates, and the frequencies or, where these are to be drawn ("random"), None.

    Raises:
      ValueError: if there is no such initialisation.
    """
    k = np.arange(n // 2)
    half = np.full(n // 2, 0.5)
    if initialization == "lin":
        return half, np.pi * k
    if initialization == "inv":
        return half, n / np.pi * (n / (2.0 * k + 1.0) - 1.0)
    if initialization == "legs":
        return half, legs_modes(n)[0].imag
    if initialization == "real":
        return k + 1.0, np.zeros(n // 2)
    if initialization == "random":
        return half, None
    raise core.bad_value(function, "initialization", initialization, f"one of {', '.join(map(repr, INITIALIZATIONS))}")
