"""Discrete latent quantities: relaxed draws, and expectations over categories with gradients for autodiff.

A temperature that falls is a schedule of optax: `optax.exponential_decay(1.0, 1000, 0.7, end_value=0.3)(step)`.

Source: Jang, Gu & Poole (2017), "Categorical reparameterization with Gumbel-softmax"; Maddison, Mnih & Teh (2017), "The
concrete distribution"; and as said at each function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln

from jaxprob import core
from jaxprob.distributions import Simplex
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.vi._bounds import with_gradient_of
from jaxprob.inference.vi._control_variates import less_the_others
from jaxprob.inference.vi._relax import perturb, relaxed_gradient

ESTIMATORS = ("exact", "score", "straight_through", "gumbel_softmax", "rebar", "relax")
LARGEST = 65_536  # combinations of categories that are enumerated


def gumbel_softmax(key: core.Key, logits: Any, temperature: Any, *, hard: bool = False) -> jax.Array:
    """A draw of categories as a point of the simplex that is differentiable in the logits: softmax((logits + g) / t).

    Args:
      key: random key.
      logits: (*shape, k), log probabilities up to a constant; -inf for an outcome that cannot occur.
      temperature: (), above 0. The lower, the nearer to a corner, and the noisier the gradient.
      hard: the corner itself, which is an exact draw, with the gradient of the relaxed one (straight-through).

    Returns:
      (*shape, k), in the dtype of `logits`.

    Raises:
      TypeError: if the key is none.
      ValueError: for logits without an axis, or a known temperature that is not positive.

    >>> gumbel_softmax(jax.random.key(0), jnp.zeros(3), 0.5, hard=True).sum().item()
    1.0

    Source: Jang, Gu & Poole (2017), equation 2 and section 2.2.
    """
    key, logits = core.as_key(key, "gumbel_softmax"), _logits("gumbel_softmax", logits)
    temperature = _temperature("gumbel_softmax", temperature).astype(logits.dtype)
    soft = _relaxed(logits + core.random.gumbel(key, logits.shape, logits.dtype, mode="high"), temperature)
    if not hard:
        return soft
    return with_gradient_of(jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype), soft)


def _relaxed(perturbed: jax.Array, temperature: jax.Array) -> jax.Array:
    possible = perturbed > -jnp.inf
    scaled = jnp.where(possible, perturbed, 0) / temperature
    return jax.nn.softmax(jnp.where(possible, scaled, -jnp.inf), axis=-1)


def _temperature(function: str, temperature: Any) -> jax.Array:
    return known_number(function, "temperature", temperature, lambda t: 0 < t < math.inf, "a positive number")


def _logits(function: str, logits: Any) -> jax.Array:
    logits = core.as_float(logits)
    if not logits.ndim or not logits.shape[-1]:
        raise core.bad_value(function, "logits", f"of shape {logits.shape}", "shape (*shape, k), one category at least")
    return logits


def gumbel_softmax_log_prob(y: Any, logits: Any, temperature: Any) -> jax.Array:
    r"""Log density of relaxed draws, with respect to the first k - 1 entries of y.

    $$\log (k - 1)! + (k - 1) \log t + \sum_i (l_i - (t + 1) \log y_i) - k \log \sum_i \exp(l_i - t \log y_i)$$

    Args:
      y: (*shape, k), on the simplex. An entry that was rounded to zero counts as the least normal number.
      logits: (*batch, k), log probabilities up to a constant, that broadcast with y.
      temperature: (), above 0.

    Returns:
      (...): -inf outside of the simplex.

    Raises:
      ValueError: for arrays without an axis or of other sizes, or a known temperature that is not positive.

    >>> gumbel_softmax_log_prob(jnp.asarray([0.5, 0.5]), jnp.zeros(2), 1.0).item()  # uniform
    0.0

    Source: Jang, Gu & Poole (2017), equation 3; Maddison, Mnih & Teh (2017), equation 10.
    """
    name = "gumbel_softmax_log_prob"
    y, logits = _logits(name, y), _logits(name, logits)
    if y.shape[-1] != logits.shape[-1]:
        raise core.bad_value(name, "y", f"of shape {y.shape}", f"shape (*shape, {logits.shape[-1]}), as the logits")
    shape = jnp.broadcast_shapes(y.shape, logits.shape)
    y, logits = jnp.broadcast_to(y, shape), jnp.broadcast_to(logits, shape).astype(y.dtype)
    temperature, number = _temperature(name, temperature).astype(y.dtype), shape[-1]
    inside = Simplex().contains(y)
    log_y = jnp.log(jnp.maximum(y, jnp.finfo(y.dtype).tiny))
    rates = logits - temperature * log_y
    shares = rates - core.logsumexp(rates, axis=-1, keepdims=True)
    constant = gammaln(jnp.asarray(number, y.dtype)) + (number - 1) * jnp.log(temperature)
    return jnp.where(inside, constant + jnp.sum(shares - log_y, axis=-1), -jnp.inf)


def discrete_expectation(
    f: Callable[[jax.Array], Any],
    logits: Any,
    key: core.Key | None = None,
    *,
    estimator: str,
    draws: int = 1,
    temperature: Any = 0.5,
    scale: Any = 1.0,
    control: Callable[[jax.Array], Any] | None = None,
) -> jax.Array:
    r"""E[f(z)] for categories z ~ Categorical(logits), or an estimate, whose gradient serves `jax.grad`.

    The gradient is with respect to the logits, and to what `f` itself depends on. Estimators:

    - "exact" enumerates all categories. Several variables have k^n combinations, at most 65,536.
    - "score" (REINFORCE): no bias, the mean of the other draws as a baseline. f need not be differentiable.
    - "straight_through": f at exact draws, with the gradient of the relaxed ones: little noise, and a bias of the
      gradient that goes with the temperature for quadratic f only.
    - "gumbel_softmax": f at relaxed draws: little noise, and a bias of value and gradient that goes with the
      temperature.
    - "rebar": "score" with `scale` times f at relaxed draws as its control variate: no bias.
    - "relax": "score" with any `control`: no bias.

    For the last two the gradient with respect to `temperature`, `scale` and what `control` depends on is that of the
    mean square of the estimate, which is its variance but for a constant: one `jax.grad` trains the control as well.
    What a control shares with f goes into it through `lax.stop_gradient`.

    Args:
      f: categories one-hot (*shape, k) to a scalar; relaxed estimators call it inside of the simplex too.
      logits: (*shape, k), log probabilities of independent variables, up to constants; -inf for an outcome that cannot
        occur.
      key: random key; None for "exact".
      estimator: see above.
      draws: whose mean is taken.
      temperature: (), above 0, of relaxed draws. The lower, the less bias and the more noise.
      scale: (), of "rebar".
      control: of "relax", perturbed logits (*shape, k) to a scalar, such as
        `lambda z: f(jax.nn.softmax(z / temperature)) + network(z)`.

    Returns:
      (): the expectation, in the dtype of f.

    Raises:
      TypeError: if `f` or `control` is no function, or the key is none.
      ValueError: for another estimator, numbers out of range, or an f that is no scalar.

    >>> f = lambda z: jnp.sum((z[1] - 0.45) ** 2)
    >>> exact = lambda logits: discrete_expectation(f, logits, estimator="exact")
    >>> [round(slope, 4) for slope in jax.grad(exact)(jnp.zeros(2)).tolist()]
    [-0.025, 0.025]

    Source: Williams (1992) and Kool, van Hoof & Welling (2019) for "score"; Jang, Gu & Poole (2017); Tucker et al.
    (2017); Grathwohl et al. (2018).
    """
    name = "discrete_expectation"
    if not callable(f):
        raise core.bad_type(name, "f", f, "a function of one-hot categories")
    if estimator not in ESTIMATORS:
        raise core.bad_value(name, "estimator", core.describe(estimator), f"one of {ESTIMATORS}")
    if (estimator == "relax") != (control is not None):
        raise core.bad_value(name, "control", core.describe(control), "a function for 'relax', and for no other")
    if control is not None and not callable(control):
        raise core.bad_type(name, "control", control, "a function of perturbed logits")
    core.check_whole(name, draws=draws)
    logits = _logits(name, logits)
    temperature = _temperature(name, temperature).astype(logits.dtype)
    scale = known_number(name, "scale", scale, math.isfinite, "a finite number").astype(logits.dtype)
    if estimator == "exact":
        return _exact(f, logits)
    keys = core.chain_keys(core.as_key(key, name), jnp.arange(draws))
    if estimator in ("straight_through", "gumbel_softmax"):
        hard = estimator == "straight_through"
        points = jax.vmap(lambda key: gumbel_softmax(key, logits, temperature, hard=hard))(keys)
        return jnp.mean(_each(f, points))
    drawn = jax.vmap(lambda key: perturb(key, logits))(keys)
    values = _each(f, drawn.one_hot)
    if estimator == "score":
        log_probs = _log_probs(drawn.one_hot, logits).astype(values.dtype)
        surrogate = jnp.mean(lax.stop_gradient(less_the_others(values)) * log_probs)
        return _with_extra_gradient(jnp.mean(values), surrogate)
    own: Any = _rebar_control(f, logits, temperature, scale) if estimator == "rebar" else control
    estimates = jax.vmap(lambda one, value: relaxed_gradient(one, value, own, logits))(drawn, values)
    move = jnp.sum(lax.stop_gradient(jnp.mean(estimates, axis=0)) * jnp.where(logits > -jnp.inf, logits, 0))
    noise = jnp.sum(jnp.mean(estimates**2, axis=0))
    return _with_extra_gradient(jnp.mean(values), (move + noise).astype(values.dtype))


def _with_extra_gradient(value: jax.Array, surrogate: jax.Array) -> jax.Array:
    return with_gradient_of(value, value + surrogate)


def _each(f: Callable[[jax.Array], Any], points: jax.Array) -> jax.Array:
    """f at points (draw, *shape, k): (draw,)."""
    values = core.as_float(jax.vmap(f)(points))
    if values.ndim != 1:
        raise core.bad_value("discrete_expectation", "f", f"of shape {values.shape[1:]}", "a scalar")
    return values


def _log_probs(points: jax.Array, logits: jax.Array) -> jax.Array:
    """Of one-hot categories (draw, *shape, k): (draw,)."""
    each = jnp.broadcast_to(jax.nn.log_softmax(logits, axis=-1), points.shape)
    return jnp.sum(jnp.where(points == 1, each, 0), axis=tuple(range(1, points.ndim)))


def _rebar_control(f: Any, logits: jax.Array, temperature: jax.Array, scale: jax.Array) -> Any:
    """scale f(relaxed), where what f depends on has no gradient: the control is to be trained, f is not by it."""
    pure, captured = jax.closure_convert(f, jnp.zeros_like(logits))
    captured = lax.stop_gradient(captured)
    return lambda perturbed: scale * pure(_relaxed(perturbed, temperature), *captured).astype(scale.dtype)


def _exact(f: Any, logits: jax.Array) -> jax.Array:
    number, variables = logits.shape[-1], math.prod(logits.shape[:-1])
    if number**variables > LARGEST:
        got, todo = f"of shape {logits.shape}, {number}^{variables} combinations", "Use another estimator"
        raise core.bad_value("discrete_expectation", "logits", got, f"at most {LARGEST} for 'exact'", todo)
    grid = jnp.stack(jnp.unravel_index(jnp.arange(number**variables), (number,) * variables), axis=-1)
    points = jax.nn.one_hot(grid.reshape((-1, *logits.shape[:-1])), number, dtype=logits.dtype)
    values = _each(f, points)
    probs = jnp.exp(_log_probs(points, logits)).astype(values.dtype)
    return jnp.sum(jnp.where(probs == 0, 0, probs * jnp.where(probs == 0, 0, values)))
