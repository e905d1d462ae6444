"""What a latent-variable model is: a law of what is hidden, a law of what is seen given it, and a guess of the hidden.

    z ~ prior(params),   x ~ likelihood(params, z),   z given x is close to recognition(params, x)

Everything is for one example; `jax.vmap` makes many. `vi.amortized_elbo` makes an objective of a model.

Source: Kingma & Welling (2014), "Auto-encoding variational Bayes".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxprob import core
from jaxprob.distributions import Distribution

Params = Any


@dataclasses.dataclass(frozen=True)
class LatentVariableModel:
    """A model with latent variables of each example, and its recognition; hashable, without arrays.

    Args:
      init: `key -> params`, a pytree of real floating arrays, of the generative and the recognition part.
      prior: `params -> Distribution` over z.
      likelihood: `(params, z) -> Distribution` over one example x; batch axes are parts of x that are independent.
      recognition: `(params, x) -> Distribution` over z, the amortised guide.
      conditional: whether the last three take a condition as their last argument, such as labels or covariates. A batch
        is then a pair (xs, conditions).

    Raises:
      TypeError: if one of the four is no function.

    >>> import jax, jax.numpy as jnp
    >>> from jaxprob.distributions import Normal
    >>> model = LatentVariableModel(
    ...     lambda key: {"slope": jnp.ones(()), "gain": jnp.zeros(())},
    ...     lambda params: Normal(0.0, 1.0),
    ...     lambda params, z: Normal(params["slope"] * z, 1.0),
    ...     lambda params, x: Normal(params["gain"] * x, 1.0),
    ... )
    >>> model.likelihood(model.init(jax.random.key(0)), 2.0).mean().item()
    2.0
    """

    init: Callable[[core.Key], Params]
    prior: Callable[..., Distribution]
    likelihood: Callable[..., Distribution]
    recognition: Callable[..., Distribution]
    conditional: bool = False

    def __post_init__(self) -> None:
        for name in ("init", "prior", "likelihood", "recognition"):
            if not callable(getattr(self, name)):
                raise core.bad_type("LatentVariableModel", name, getattr(self, name), "a function")
