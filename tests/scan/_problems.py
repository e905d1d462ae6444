"""What the tests of scan.newton share: compiled solvers, problems, and the same step in float64 NumPy."""

import functools

import jax
import numpy as np
import pytest

from jaxprob import scan
from tests.scan._cells import CELLS, INPUTS, exactly

EPS = float(np.finfo(np.float32).eps)
SOLVED = 128 * EPS  # the documented tolerance for states of size one
each_method = pytest.mark.parametrize("method", ["sequential", "chunked"])
each_cell = pytest.mark.parametrize("name", CELLS)


@functools.cache
def solver(name, jacobian=None, **options):
    """A compiled Newton solver for a cell; parameters and data are arguments, so that one program serves many tests."""
    cell = CELLS[name]
    jacobian = cell.jacobian if jacobian is None else jacobian

    @jax.jit
    def solve(params, init, xs, **given):
        return scan.newton(
            lambda state, x: cell.step(params, state, x), init, xs, jacobian=jacobian, **options, **given
        )

    return solve


def problem(name, seed, steps, size=8, gain=0.5, inputs=1.0):
    rng = np.random.default_rng(seed)
    params = CELLS[name].init_params(rng, size, gain)
    return params, CELLS[name].init_state(size), (inputs * rng.normal(size=(steps, INPUTS))).astype(np.float32)


def oracle(name, params):
    """The step in float64 NumPy."""
    params = exactly(params)
    return lambda state, x: CELLS[name].step(params, state, x)


def difference(a, b):
    """The largest absolute difference of two pytrees, relative to the largest entry of b if that is above one."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(exactly(a)), jax.tree.leaves(exactly(b)), strict=True):
        assert x.shape == y.shape
        worst = max(worst, np.max(np.abs(x - y)) / max(1.0, np.max(np.abs(y)))) if x.size else worst
        assert np.isfinite(x).all()
    return worst
