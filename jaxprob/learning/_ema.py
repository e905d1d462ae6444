"""Moving averages of parameters.

Source: Polyak and Juditsky (1992), "Acceleration of stochastic approximation by averaging"; the correction of the start
is that of Kingma and Ba (2015), "Adam", section 3.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def averaged(average: Any, params: Any, decay: float, count: jax.Array) -> Any:
    """The average after one more step: m_t = m_{t-1} + (1 - d) / (1 - d^t) (p_t - m_{t-1}).

    Args:
      average: pytree like `params`, in float32 at least: m_{t-1}. Of no account for t = 1.
      params: pytree, p_t.
      decay: d, between 0 and 1.
      count: integer scalar t, 1 for the first step.
    """
    # 1 - d^t by expm1: for d = 0.9999 and t = 1 the difference has three digits in float32.
    weight = math.expm1(math.log(decay)) / jnp.expm1(count.astype(jnp.float32) * math.log(decay))
    return jax.tree.map(lambda m, p: m + weight.astype(m.dtype) * (p.astype(m.dtype) - m), average, params)
