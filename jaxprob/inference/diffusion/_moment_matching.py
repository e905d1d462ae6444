"""What a denoiser knows of a quantity of the data: log probabilities of events and observations, given x_t.

The law of x_0 given x_t is taken for a normal one with its first two moments: the mean is what the denoiser says, and
by Tweedie's formula the covariance is `sigma^2 / alpha` times the derivative of that mean. A quantity is linearised
about the mean. As noise vanishes this is exact, and for normal data and linear quantities it always is; on curved or
multimodal ones samples are biased at high noise, which `twisted` corrects.

Sources: Finzi, Boral, Wilson, Sha & Zepeda-Nunez (2023), "User-defined event sampling and uncertainty quantification in
diffusion models for physical dynamical systems", equations 9 to 13; Song, Vahdat, Mardani & Kautz (2023),
"Pseudoinverse-guided diffusion models for inverse problems"; Rozet, Andry, Lanusse & Louppe (2024), "Learning diffusion
priors from observations by expectation maximization", for conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.inference.diffusion._guidance import _check_callable, check_gaussian, correlated
from jaxprob.models.diffusion import Denoiser, Gaussian

COVARIANCES = ("matched", "isotropic")


def above(
    process: Gaussian,
    denoiser: Denoiser,
    quantity: Callable[[jax.Array], jax.Array],
    level: Any,
    *,
    covariance: str = "matched",
) -> Any:
    """Log probability that a quantity of the data is above a level, given x_t: an event for `guided` and `twisted`.

    Args:
      process: a Gaussian process.
      denoiser: `(x, t, condition) -> output`.
      quantity: `x_0 -> scalar`, differentiable. For an event below a level turn both signs.
      level: ().
      covariance: of x_0 given x_t: "matched", from the derivative of the denoiser, or "isotropic", that of independent
        normal data of standard deviation `process.data_scale`. An error of that derivative counts `sigma^2 / alpha`
        times, thousands at time 1 of a schedule that ends at a log ratio of -15: with a denoiser that is learnt rather
        than known, "isotropic" is the safer one, or a schedule that ends at -6. Where a matched covariance is none (not
        positive) the isotropic one takes its place. Where data are wider than the isotropic one says, a gradient would
        move them beyond what is asked for, and samples diverge: it is made shorter, to move them there.

    Returns:
      `(x, t, condition) -> scalar`, a pytree.

    Raises:
      TypeError: if the process is not Gaussian, or a function is none.
      ValueError: for an unknown covariance, or if the quantity is not one number (when it is called).

    Source: Finzi et al. (2023), equation 13.
    """
    name = "diffusion.above"
    _check(name, process, denoiser, quantity, covariance)
    return Partial(core.Bound(_above, covariance), process, core.as_partial(denoiser), core.as_partial(quantity), level)


def _above(
    covariance: str, process: Gaussian, denoiser: Any, quantity: Any, level: Any, x: Any, t: Any, condition: Any
) -> jax.Array:
    mean, jacobian, times, even, move = _moments(process, denoiser, quantity, covariance, x, t, condition)
    if mean.shape != ():
        raise core.bad_value("diffusion.above", "quantity", f"of shape {mean.shape}", "one number", "See observed")
    variance = jnp.vdot(jacobian, times(jacobian))
    variance = jax.lax.stop_gradient(jnp.where(variance > 0, variance, jnp.vdot(jacobian, even(jacobian))))
    # A variance below that of rounding counts as that.
    scale = jnp.sqrt(jnp.maximum(variance, jnp.finfo(x.dtype).eps ** 2))

    def told(mean: jax.Array) -> jax.Array:
        return log_ndtr((mean - jnp.asarray(level, x.dtype)) / scale)

    if move is None:
        return told(mean)
    told_now, slope = jax.value_and_grad(told)(mean)
    gradient, moved = move(slope * jacobian)
    return _with_gradient(told_now, _at_most_one(scale**2 * slope, jnp.vdot(jacobian, moved)) * gradient, x)


def observed(
    process: Gaussian,
    denoiser: Denoiser,
    operator: Callable[[jax.Array], jax.Array],
    value: Any,
    noise_scale: Any,
    *,
    covariance: str = "matched",
    iterations: int | None = None,
) -> Any:
    """Log density of noisy observations of the data, given x_t: inverse problems and inpainting.

    `value = operator(x_0) + noise_scale * noise`; for inpainting the operator picks what is known.

    Args:
      process: a Gaussian process.
      denoiser: `(x, t, condition) -> output`.
      operator: `x_0 -> array`, differentiable; it need not be linear.
      value: array, what was observed.
      noise_scale: () or of the shape of `value`, positive standard deviations.
      covariance: as for `above`.
      iterations: of conjugate gradients, which stand for a factorisation where there are many observations; the log
        density then has no determinant, and is for gradients alone. None factorises.

    Returns:
      `(x, t, condition) -> scalar`, a pytree.

    Raises:
      TypeError: if the process is not Gaussian, or a function is none.
      ValueError: for an unknown covariance, a noise scale that is not positive, `iterations` that are not whole, or an
        operator of another shape than the value (when it is called).

    Source: Song et al. (2023), equation 8; Rozet et al. (2024), algorithm 2.
    """
    name = "diffusion.observed"
    _check(name, process, denoiser, operator, covariance)
    value, noise_scale = core.as_float(value), core.as_float(noise_scale)
    if noise_scale.shape not in ((), value.shape):
        raise core.bad_value(name, "noise_scale", noise_scale, f"() or {value.shape}, as the value")
    if not isinstance(noise_scale, jax.core.Tracer) and not bool(jnp.all(noise_scale > 0)):
        raise core.bad_value(name, "noise_scale", noise_scale, "positive numbers", "Pass a small one for exact data")
    if iterations is not None:
        core.check_whole(name, iterations=iterations)
    noise_scale = jnp.broadcast_to(noise_scale, value.shape)
    functions = core.as_partial(denoiser), core.as_partial(operator)
    return Partial(core.Bound(_observed, covariance, iterations), process, *functions, value, noise_scale)


def _observed(
    covariance: str,
    iterations: int | None,
    process: Gaussian,
    denoiser: Any,
    operator: Any,
    value: jax.Array,
    noise_scale: jax.Array,
    x: Any,
    t: Any,
    condition: Any,
) -> jax.Array:
    found = _moments(process, denoiser, operator, covariance, x, t, condition, iterations is not None)
    mean, jacobian, times, even, move = found
    if mean.shape != value.shape:
        raise core.bad_value("diffusion.observed", "operator", f"of shape {mean.shape}", f"{value.shape}, as the value")
    missed = jnp.ravel(value.astype(x.dtype) - mean)
    variance = jnp.ravel(noise_scale.astype(x.dtype)) ** 2
    if iterations is None:
        rows = jacobian.reshape(missed.size, x.size)

        def factor_of(times: Any) -> jax.Array:
            moved = jax.vmap(lambda row: jnp.ravel(times(row.reshape(x.shape))))(rows)
            return core.cholesky(core.symmetrize(core.matmul(rows, moved.T)) + jnp.diag(variance))

        factor = factor_of(times)
        if covariance == "matched":
            factor = jnp.where(jnp.all(jnp.isfinite(factor)), factor, factor_of(even))
        factor = jax.lax.stop_gradient(factor)
        white = core.solve_triangular(factor, missed, vector=True)
        told = -0.5 * jnp.sum(white**2) - jnp.sum(jnp.log(jnp.diag(factor)))
        if move is None:
            return told
        solved = core.solve_triangular(factor, white, transpose=True, vector=True)
        gradient, moved = move(core.matvec(rows.T, solved).reshape(x.shape))
        moved = core.solve_triangular(factor, core.matvec(rows, jnp.ravel(moved)), vector=True)
        return _with_gradient(told, _at_most_one(jnp.vdot(white, moved), jnp.vdot(moved, moved)) * gradient, x)

    push, pull = jacobian
    fixed = jax.lax.stop_gradient(missed)

    def solve(times: Any, fixed: jax.Array = fixed) -> tuple[jax.Array, jax.Array]:
        """The solution, and whether it is one: what is no covariance sends conjugate gradients astray."""

        def multiply(v: jax.Array) -> jax.Array:
            return jnp.ravel(push(times(pull(v.reshape(mean.shape))))) + variance * v

        solved = jax.scipy.sparse.linalg.cg(multiply, fixed, tol=1e-6, maxiter=iterations)[0]
        return solved, jnp.sum((multiply(solved) - fixed) ** 2) < 0.01 * jnp.sum(fixed**2)

    solved, is_solved = solve(times)
    if move is not None:
        gradient, moved = move(pull(solved.reshape(mean.shape)))
        moved = jnp.ravel(push(moved))
        share = _at_most_one(jnp.vdot(solved, moved), jnp.vdot(solve(times, moved)[0], moved))
        return _with_gradient(-0.5 * jnp.vdot(solved, fixed), share * gradient, x)
    solved = jnp.where(is_solved, solved, solve(even)[0])
    # Its gradient is that of the quadratic form: the solution is held fixed, and half of it is counted back.
    solved = jax.lax.stop_gradient(solved)
    return -jnp.vdot(solved, missed) + 0.5 * jnp.vdot(solved, fixed)


def _moments(
    process: Gaussian,
    denoiser: Any,
    quantity: Any,
    covariance: str,
    x: jax.Array,
    t: Any,
    condition: Any,
    matrix_free: bool = False,
) -> tuple[jax.Array, Any, Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array], Any]:
    """The quantity at the mean of x_0, its Jacobian there, and the covariance of x_0 as a function of a vector, twice.

    The second covariance is the isotropic one, whatever the first is. The Jacobian is (*quantity, *example), or for
    `matrix_free` a pair of functions: its product, and its transpose's. The last is None, or for "isotropic" a function
    of a gradient with respect to the mean of x_0: the one with respect to x, and by what guidance with it moves the
    mean. Where that mean is wider than the covariance says, it is too far.
    """

    def clean(x: jax.Array) -> jax.Array:
        return process.clean(process.output(denoiser, x, t, condition, x.shape), x, t)

    alpha, sigma = (scale.astype(x.dtype) for scale in process.scales(t))

    def even(v: jax.Array) -> jax.Array:
        return process._linear_guess(alpha, sigma)[1] ** 2 * correlated(process, v)

    move = None
    if covariance == "matched":
        mean, push = jax.linearize(clean, x)

        def times(v: jax.Array) -> jax.Array:
            return sigma**2 / alpha * push(correlated(process, v))

    else:
        (mean, back), times = jax.vjp(clean, jax.lax.stop_gradient(x)), even

        def move(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
            (found,) = back(gradient)
            return found, sigma**2 / alpha * correlated(process, found)

    at = jax.lax.stop_gradient(mean)
    if matrix_free:
        forward = jax.linearize(quantity, at)[1]
        backward = jax.vjp(quantity, at)[1]
        return quantity(mean), (forward, lambda v: backward(v)[0]), times, even, move
    return quantity(mean), jax.jacrev(quantity)(at), times, even, move


def _with_gradient(value: jax.Array, gradient: jax.Array, x: jax.Array) -> jax.Array:
    """The value, with this gradient with respect to x."""
    value, gradient = jax.lax.stop_gradient((value, gradient))
    return value + jnp.vdot(gradient, x - jax.lax.stop_gradient(x))


def _at_most_one(wanted: jax.Array, got: jax.Array) -> jax.Array:
    """What share of a move to make for what is wanted of it, all of it at most."""
    return jnp.where(got > 0, jnp.clip(wanted / jnp.where(got > 0, got, 1), 0, 1), 1)


def _check(function: str, process: Any, denoiser: Any, quantity: Any, covariance: str) -> None:
    check_gaussian(function, process)
    _check_callable(function, "denoiser", denoiser)
    if not callable(quantity):
        raise core.bad_type(function, "quantity", core.describe(quantity), "a function of an example")
    if covariance not in COVARIANCES:
        raise core.bad_value(function, "covariance", core.describe(covariance), f"one of {COVARIANCES}")
