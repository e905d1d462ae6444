"""Gaussian elements of linear state-space models: their products have the moments of a Kalman filter and smoother."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.scan import monoids as m
from tests.scan._monoid_cases import squared


class Model(NamedTuple):
    """x_1 ~ N(0, P), x_{t+1} ~ N(F x_t, Q Q^T), y_t ~ N(H_t x_t, R)."""

    P: np.ndarray
    F: np.ndarray
    Q: np.ndarray
    H: np.ndarray
    R: np.ndarray
    y: np.ndarray


def model(seed, n=3, p=2, steps=9, prior=1.0, rank=None, missing=()):
    rng = np.random.default_rng(seed)
    F = 0.95 * np.linalg.qr(rng.normal(size=(n, n)))[0]
    Q = np.zeros((n, n))
    Q[:, : n if rank is None else rank] = rng.normal(size=(n, n if rank is None else rank))
    H = np.tile(rng.normal(size=(p, n)), (steps, 1, 1))
    H[list(missing)] = 0.0
    return Model(prior * np.eye(n), F, Q, H, np.eye(p), rng.normal(size=(steps, p)))


MODELS = {
    "regular": model(0),
    "noise of rank one": model(1, rank=1),
    "no noise": model(2, rank=0),
    "known start": model(3, prior=0.0),
    "known start, no noise": model(4, prior=0.0, rank=0),
    "missing": model(5, missing=(0, 3, 4, 8)),
}


def kalman_filter(s):
    """Means and covariances (time, ...) of the filter, in Joseph form."""
    x, P, out = np.zeros(len(s.F)), s.P, []
    for t, (H, y) in enumerate(zip(s.H, s.y, strict=True)):
        if t:
            x, P = s.F @ x, s.F @ P @ s.F.T + s.Q @ s.Q.T
        K = P @ H.T @ np.linalg.inv(H @ P @ H.T + s.R)
        x, keep = x + K @ (y - H @ x), np.eye(len(x)) - K @ H
        P = keep @ P @ keep.T + K @ s.R @ K.T
        out.append((x, P))
    return tuple(map(np.stack, zip(*out, strict=True)))


def rts_smoother(s, x, P):
    """Means and covariances (time, ...) of the smoother, and its gains (time - 1, n, n)."""
    out, gains = [(x[-1], P[-1])], []
    for t in range(len(x) - 2, -1, -1):
        predicted = s.F @ P[t] @ s.F.T + s.Q @ s.Q.T
        E = P[t] @ s.F.T @ np.linalg.pinv(predicted)
        later, spread = out[0]
        out.insert(0, (x[t] + E @ (later - s.F @ x[t]), P[t] + E @ (spread - predicted) @ E.T))
        gains.insert(0, E)
    return *map(np.stack, zip(*out, strict=True)), np.stack(gains)


def root_of(*parts):
    """A square root of the sum of a a^T, by QR."""
    a = np.concatenate(parts, 1)
    r = np.linalg.qr(a.T, mode="r").T
    return np.pad(r, ((0, 0), (0, len(a) - r.shape[1])))


def stacked(kind, items):
    return kind(*(np.stack(x) for x in zip(*items, strict=True)))


def filter_elements(s):
    """Each step given the state before; the first one has the prior for its noise, and no state before."""
    items = []
    for t, (H, y) in enumerate(zip(s.H, s.y, strict=True)):
        F, noise = (s.F, s.Q) if t else (0 * s.F, np.sqrt(s.P))
        Q = noise @ noise.T
        inverse = np.linalg.inv(H @ Q @ H.T + s.R)
        K = Q @ H.T @ inverse
        keep = np.eye(len(Q)) - K @ H
        U = root_of(keep @ noise, K @ np.linalg.cholesky(s.R))
        items.append((keep @ F, K @ y, U, F.T @ H.T @ inverse @ y, root_of(F.T @ H.T @ np.linalg.cholesky(inverse))))
    return stacked(m.SquareRootFilterElement, items)


def smoother_elements(s, x, P, gains):
    n = len(s.F)
    items = [(np.zeros((n, n)), x[-1], np.linalg.cholesky(P[-1] + 1e-300 * np.eye(n)) if P[-1].any() else P[-1])]
    for t in range(len(x) - 2, -1, -1):
        E, w = gains[t], np.linalg.eigh(P[t])
        root = w[1] * np.sqrt(np.maximum(w[0], 0.0))
        items.insert(0, (E, x[t] - E @ s.F @ x[t], root_of(root - E @ s.F @ root, E @ s.Q)))
    return stacked(m.SquareRootSmootherElement, items)


def products(monoid, reverse=False):
    return jax.jit(lambda elements: jax.lax.associative_scan(jax.vmap(monoid.combine), elements, reverse=reverse))


FILTERS = {"covariance": products(m.gaussian_filter), "square root": products(m.square_root_gaussian_filter)}
SMOOTHERS = {
    "covariance": products(m.gaussian_smoother, reverse=True),
    "square root": products(m.square_root_gaussian_smoother, reverse=True),
}


def in_form(form, elements, dtype):
    if form == "covariance":
        elements = type(squared(jax.tree.map(lambda x: x[0], elements)))(
            *(x @ np.swapaxes(x, 1, 2) if name in "UZD" else x for name, x in elements._asdict().items())
        )
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), elements)


def moments(form, result):
    mean, spread = (np.asarray(x, np.float64) for x in result[1:3])
    return mean, spread if form == "covariance" else spread @ np.swapaxes(spread, 1, 2)


def errors(form, result, mean, covariance):
    """The largest errors in units of standard deviations, or of 1e-2 where those are smaller."""
    got_mean, got_covariance = moments(form, result)
    unit = np.maximum(np.sqrt(np.einsum("tii->ti", covariance)), 1e-2)
    error = np.abs(got_covariance - covariance) / (unit[:, :, None] * unit[:, None, :])
    return np.max(np.abs(got_mean - mean) / unit), np.max(error)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FILTERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prefixes_are_the_filter_and_reverse_products_the_smoother(name, form, dtype):
    """Errors are below 100 eps of a standard deviation, in float64 those of NumPy's smoother included."""
    s = MODELS[name]
    x, P = kalman_filter(s)
    smoothed, spread, gains = rts_smoother(s, x, P)
    with jax.enable_x64(dtype == "float64"):
        filtered = FILTERS[form](in_form(form, filter_elements(s), dtype))
        result = SMOOTHERS[form](in_form(form, smoother_elements(s, x, P, gains), dtype))
    assert filtered[2].dtype == result[2].dtype == dtype
    for error in (*errors(form, filtered, x, P), *errors(form, result, smoothed, spread)):
        assert error < 100 * np.finfo(dtype).eps
    if form == "covariance":
        for matrix in (filtered.C, filtered.J, result.L):
            np.testing.assert_array_equal(matrix, np.swapaxes(matrix, 1, 2))


def test_square_roots_in_float32_keep_a_vague_prior():
    """A prior variance of 1e6: means and covariances are right to 1e-4 of a standard deviation.

    With G (b + C eta) computed as it stands means err by 7e-4 to 1e-2; carried covariances err by 5e-3 to 5e-2.
    """
    for seed in range(4):
        s = model(seed, n=4, p=1, steps=64, prior=1e6)
        result = FILTERS["square root"](in_form("square root", filter_elements(s), "float32"))
        of_mean, of_covariance = errors("square root", result, *kalman_filter(s))
        assert of_mean < 1e-4
        assert of_covariance < 1e-4
