"""Alternative parametrisations: exactly one of several arguments, and success probabilities from either form."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions._parameters import ANY, PROBABILITY, set_parameters


def one_of(function: str, **given: Any) -> None:
    """Raises a `ValueError` unless exactly one of the keywords is not None."""
    count = sum(value is not None for value in given.values())
    if count != 1:
        names = list(given)
        raise core.bad_value(
            function,
            ", ".join(names[:-1]) + f" or {names[-1]}",
            "not given" if count == 0 else "given twice",
            "exactly one of them",
            f"Call {function} with one of {names}",
        )


class Odds(NamedTuple):
    """Probabilities of success (p) and failure (q) with their logarithms: none is a rounded complement of another."""

    p: jax.Array
    q: jax.Array
    log_p: jax.Array
    log_q: jax.Array


def odds(probs: jax.Array | None, logits: jax.Array | None) -> Odds:
    """Probabilities from whichever parameter is there; gradients are finite at probabilities of 0 and 1."""
    if logits is not None:
        log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return Odds(jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits), log_p, log_q)
    assert probs is not None
    certain = probs >= 1
    log_q = jnp.where(certain, -jnp.inf, jnp.log1p(-jnp.where(certain, 0.0, probs)))
    return Odds(probs, 1 - probs, core.safe_log(probs), log_q)


def set_odds(distribution: Any) -> None:
    """Converts and checks `probs` or `logits` of a distribution under construction."""
    one_of(type(distribution).__name__, probs=distribution.probs, logits=distribution.logits)
    if distribution.probs is None:
        set_parameters(distribution, logits=ANY)
    else:
        set_parameters(distribution, probs=PROBABILITY)
