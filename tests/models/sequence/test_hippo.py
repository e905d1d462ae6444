"""HiPPO-LegS and its normal part, against the formulas written out and a general eigenvalue routine."""

import numpy as np
import pytest

from jaxprob.models import sequence


def formula(n):
    """Entry by entry, from the paper."""
    a = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i > j:
                a[i, j] = -((2 * i + 1) ** 0.5) * (2 * j + 1) ** 0.5
            elif i == j:
                a[i, j] = -(i + 1)
    return a, np.array([(2 * i + 1) ** 0.5 for i in range(n)])


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_the_matrix_is_that_of_the_paper(n):
    a, b = sequence.hippo_legs(n)
    wanted, vector = formula(n)
    np.testing.assert_allclose(a, wanted, rtol=1e-14)
    np.testing.assert_allclose(b, vector, rtol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_a_normal_matrix_less_rank_one(n):
    a, b = formula(n)
    found = sequence.normal_plus_low_rank(n)
    v, p = found.eigenvectors, found.low_rank
    np.testing.assert_allclose(v @ np.diag(found.eigenvalues) @ v.conj().T - np.outer(p, p), a, atol=1e-11 * n)
    np.testing.assert_allclose(v.conj().T @ v, np.eye(n), atol=1e-13)
    np.testing.assert_allclose(found.input, b)


@pytest.mark.parametrize("n", [2, 16, 64])
def test_eigenvalues(n):
    """Those of a general routine; on the line of real part -1/2, in conjugate pairs."""
    a, _ = formula(n)
    normal = a + np.outer(np.sqrt(np.arange(n) + 0.5), np.sqrt(np.arange(n) + 0.5))
    wanted = np.linalg.eigvals(normal)
    wanted = wanted[np.argsort(wanted.imag)]
    found = sequence.normal_plus_low_rank(n).eigenvalues
    np.testing.assert_allclose(found.imag, wanted.imag, atol=1e-10)
    np.testing.assert_allclose(wanted.real, -0.5, atol=1e-10)
    np.testing.assert_allclose(found.real, -0.5, atol=1e-14)
    np.testing.assert_allclose(found.imag, -found.imag[::-1], atol=1e-10)


def test_inverse_frequencies_are_those_of_legs_for_large_states():
    """The initialisation "inv" is their asymptotic form: the largest are within 20 % at n = 64, and grow as n^2."""
    n = 64
    k = np.arange(4)
    found = np.sort(sequence.normal_plus_low_rank(n).eigenvalues.imag)[::-1][:4]
    np.testing.assert_allclose(found, n / np.pi * (n / (2 * k + 1) - 1), rtol=0.2)


def transfer_error(n, s=0.5):
    """Of the first four basis kernels: the normal part with half the input, beside the whole matrix."""
    a, b = formula(n)
    whole = np.linalg.solve(s * np.eye(n) - a, b)[:4]
    found = sequence.normal_plus_low_rank(n)
    v = found.eigenvectors
    part = (v @ ((v.conj().T @ found.input / 2) / (s - found.eigenvalues)))[:4]
    assert np.max(abs(part.imag)) < 1e-10
    return np.linalg.norm(part.real - whole) / np.linalg.norm(whole)


def test_the_normal_part_with_half_the_input_has_the_transfer_function_of_the_whole():
    """The error of the Laplace transform falls by 4 as n doubles; pointwise the kernels do not converge."""
    errors = np.array([transfer_error(n) for n in (16, 32, 64, 128)])
    assert errors[0] < 2e-3
    assert np.polyfit(range(4), np.log2(errors), 1)[0] <= -1.7


def test_the_kept_eigenvectors_turn_real_gaussian_weights_into_complex_ones():
    """V* B of a real B of unit variance has independent complex entries: V* V = 1 and V' V = 0 for half of them."""
    v = sequence.normal_plus_low_rank(16).eigenvectors[:, 8:]
    np.testing.assert_allclose(v.conj().T @ v, np.eye(8), atol=1e-13)
    np.testing.assert_allclose(v.T @ v, np.zeros((8, 8)), atol=1e-12)


@pytest.mark.parametrize("function", [sequence.hippo_legs, sequence.normal_plus_low_rank])
@pytest.mark.parametrize("n", [0, -1, 2.0, True, "4"])
def test_bad_sizes_are_one_line(function, n):
    with pytest.raises(ValueError, match=r"^sequence\.\w+: n is .*; expected a whole number, 1 or more\.$"):
        function(n)
