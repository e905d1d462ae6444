"""Whether the innovations of a filter are what they should be: independent and standard normal.

Source: Bar-Shalom, Li & Kirubarajan (2001), "Estimation with applications to tracking and navigation", section 5.4;
Ljung & Box (1978), "On a measure of lack of fit in time series models".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaincc

from jaxprob import core


class InnovationTests(NamedTuple):
    """Probabilities of innovations at least so unlike those of a right model.

    Attributes:
      squared: (), mean of the squared standardised innovations, 1 in expectation (normalised innovation squared).
      squared_p_value: (), of both tails.
      autocorrelation: (m, lags), of each series of innovations.
      whiteness: (m,), Ljung-Box statistic of each.
      whiteness_p_value: (m,), of a larger one.
      number: (), innovations that there are.
    """

    squared: jax.Array
    squared_p_value: jax.Array
    autocorrelation: jax.Array
    whiteness: jax.Array
    whiteness_p_value: jax.Array
    number: jax.Array


def innovation_tests(innovation: Any, lags: int = 10) -> InnovationTests:
    """Tests the standardised innovations of a filter.

    Args:
      innovation: what `filter` found, or its `innovation` (time, m). Zeros (missing) and NaN (diffuse) take no part.
      lags: of the autocorrelations, fewer than times.

    Raises:
      ValueError: if the shape or the lags do not fit.

    >>> import numpy as np
    >>> white = np.random.default_rng(0).normal(size=(500, 1))
    >>> bool(innovation_tests(white).whiteness_p_value[0] > 0.01)
    True
    >>> bool(innovation_tests(3 * white).squared_p_value > 0.01)
    False
    """
    e = core.as_float(getattr(innovation, "innovation", innovation))
    if e.ndim != 2:
        raise core.bad_value("kalman.innovation_tests", "innovation", e, "an array (time, m)")
    if isinstance(lags, bool) or not isinstance(lags, int) or not 1 <= lags < e.shape[0]:
        raise core.bad_value("kalman.innovation_tests", "lags", lags, f"an integer from 1 to {e.shape[0] - 1}")
    there = ~jnp.isnan(e) & (e != 0)
    e = jnp.where(there, e, 0)
    number = jnp.sum(there)
    count = number.astype(e.dtype)
    total = jnp.sum(e**2)
    upper = gammaincc(count / 2, total / 2)
    each = jnp.sum(there, 0).astype(e.dtype)
    lagged = [jnp.sum(e[lag:] * e[:-lag], 0) / jnp.sum(e**2, 0) for lag in range(1, lags + 1)]
    correlation = jnp.stack(lagged, 1)
    weights = jnp.stack([each * (each + 2) / (each - lag) for lag in range(1, lags + 1)], 1)
    box = jnp.sum(weights * correlation**2, 1)
    return InnovationTests(
        total / count,
        2 * jnp.minimum(upper, 1 - upper),
        correlation,
        box,
        gammaincc(jnp.full_like(box, lags / 2), box / 2),
        number,
    )
