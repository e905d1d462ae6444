"""Linear-chain conditional random fields: scores of sequences of tags, normalised over all of them.

    log p(z | x) = initial[z_0] + sum_t emissions[t, z_t] + sum_t transitions[z_{t-1}, z_t] + final[z_last] - log Z

Source: Lafferty, McCallum & Pereira (2001), "Conditional random fields".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


@core.pytree
class LinearChain:
    """Scores of the sequences of K tags; -inf is impossible.

    Attributes:
      emissions: (time, K), scores of each tag at each position, as a network gives them.
      transitions: (K, K), scores of the steps from one tag (rows) to the next; where declared time-varying
        (time - 1, K, K).
      initial: (K,), scores of the first tag; zero by default.
      final: (K,), scores of the last tag; zero by default.
      mask: (time,) booleans, true where there is a position; all by default. Shorter sequences of a batch are padded
        and false there. What is masked is skipped: the positions before and after it are neighbours.
      time_varying: ("transitions",), or nothing.

    Raises:
      ValueError: if shapes do not fit, or a score that is known is NaN or +inf.

    >>> LinearChain(jnp.zeros((5, 3)), jnp.zeros((3, 3))).tag_size
    3
    """

    emissions: Any
    transitions: Any
    initial: Any = None
    final: Any = None
    mask: Any = None
    time_varying: tuple[str, ...] = core.static(default=())

    def __post_init__(self) -> None:
        name = "LinearChain"
        declared = (self.time_varying,) if isinstance(self.time_varying, str) else tuple(self.time_varying)
        if declared not in ((), ("transitions",)):
            raise core.bad_value(name, "time_varying", declared, "('transitions',) or ()")
        object.__setattr__(self, "time_varying", declared)
        emissions = core.as_float(self.emissions)
        if emissions.ndim != 2 or not emissions.shape[1]:
            todo = "One sequence; vmap makes many"
            raise core.bad_value(name, "emissions", f"of shape {emissions.shape}", "shape (time, K)", todo)
        times, size = emissions.shape
        given = {"emissions": emissions, "transitions": core.as_float(self.transitions)}
        for argument in ("initial", "final"):
            value = getattr(self, argument)
            given[argument] = jnp.zeros_like(emissions, shape=(size,)) if value is None else core.as_float(value)
        shapes = {
            "emissions": (times, size),
            "transitions": ((max(times - 1, 0),) if declared else ()) + (size, size),
            "initial": (size,),
            "final": (size,),
        }
        dtype = core.result_dtype(*given.values())
        for argument, array in given.items():
            if array.shape != shapes[argument]:
                todo = ""
                if argument == "transitions" and array.ndim == 3 and not declared:
                    todo = "Declare time_varying=('transitions',) if they vary"
                raise core.bad_value(name, argument, f"of shape {array.shape}", f"shape {shapes[argument]}", todo)
            if not isinstance(array, jax.core.Tracer) and not (np.asarray(array, np.float64) < np.inf).all():
                raise core.bad_value(
                    name, argument, "NaN or +inf somewhere", "finite scores, or -inf", "Mask what is missing"
                )
            object.__setattr__(self, argument, array.astype(dtype))
        if self.mask is not None:
            mask = jnp.asarray(self.mask)
            if mask.shape != (times,) or mask.dtype != bool:
                raise core.bad_value(
                    name, "mask", mask, f"booleans of shape ({times},), true where there is a position"
                )
            object.__setattr__(self, "mask", mask)

    @property
    def tag_size(self) -> int:
        """K, the number of tags."""
        return self.emissions.shape[-1]
