"""Proposals: laws that particles are drawn from in the place of the model's, with an eye to what is observed.

Weights take the density of the proposal out again, p(x_t | x_{t-1}) p(y_t | x_t) / q(x_t | x_{t-1}, y_t), so that the
likelihood stays unbiased whatever is proposed, as long as q is nowhere zero where p is not.

Source: Doucet, Godsill & Andrieu (2000), "On sequential Monte Carlo sampling methods for Bayesian filtering"; van der
Merwe, Doucet, de Freitas & Wan (2000), "The unscented particle filter".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution, Normal
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.kalman import _laplace as laplace
from jaxprob.inference.kalman._linearize import Laplace, Rule, as_rule
from jaxprob.inference.kalman._nonlinear import shifted
from jaxprob.inference.kalman._square_root import Moments, observe
from jaxprob.inference.particle._model import Datum, Laws, normal


@core.pytree
class Guided:
    """Laws of the user; of `guided`."""

    first: Any
    then: Any

    takes_missing = False

    def initial(self, laws: Laws, datum: Datum) -> Distribution:
        """The law of the first state."""
        return laws.initial if self.first is None else _fitting("initial", self.first(datum.values), laws)

    def transition(self, laws: Laws, previous: Any, *, time: Any, datum: Datum) -> Distribution:
        """The law of the state at a time."""
        if self.then is None:
            return laws.next_state(previous, time - 1)
        return _fitting("transition", self.then(previous, time, datum.values), laws)


@core.pytree
class KalmanGuided:
    """Normal laws of one linearised update a particle; of `kalman_guided`."""

    rule: Rule = core.static()

    takes_missing = True

    def initial(self, laws: Laws, datum: Datum) -> Distribution:
        """The law of the first state."""
        return self._updated(laws, "initial", laws.initial, 0, datum)

    def transition(self, laws: Laws, previous: Any, *, time: Any, datum: Datum) -> Distribution:
        """The law of the state at a time."""
        return self._updated(laws, "transition", laws.next_state(previous, time - 1), time, datum)

    def _updated(self, laws: Laws, argument: str, law: Distribution, time: Any, datum: Datum) -> Distribution:
        name, like = "particle.kalman_guided", laws.state
        if laws.observed is None or len(like.shape) > 1 or not jnp.issubdtype(like.dtype, jnp.floating):
            got = f"one whose state is of shape {like.shape} and dtype {like.dtype}"
            raise core.bad_value(name, "model", got, "one with a real state of shape () or (n,)")
        dtype = core.accumulator_dtype(core.result_dtype(like, law))
        mean, spread = conditional.moments(name, argument, law, dtype)
        before = Moments(jnp.expand_dims(mean, 1), conditional.root_of(spread))

        def state(x: jax.Array) -> jax.Array:
            return jnp.reshape(x, like.shape).astype(like.dtype)

        if isinstance(self.rule, Laplace):
            after, _ = laplace.condition(before, lambda x: laws.log_observation(state(x), time, datum).astype(dtype))
        else:
            observed = laws.observed

            def given(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                return conditional.moments(name, "observation", observed(state(x), time), dtype)

            values, seen = jnp.reshape(datum.values, -1).astype(dtype), jnp.reshape(datum.seen, -1)
            emission = shifted(self.rule.linearize(given, mean, before.factor), values, seen)
            after, _ = observe(before, *emission, seen)
        if like.shape:
            return normal(after.mean[:, 0], after.factor)
        return Normal(after.mean[0, 0], jnp.abs(after.factor[0, 0]))


def guided(*, initial: Callable[..., Any] | None = None, transition: Callable[..., Any] | None = None) -> Guided:
    """A proposal by laws of the user's; those of the model where one is left out, and where anything of y is missing.

    Where a law is zero and the model is not, the filter is blind: no draw tells. A draw that the law itself calls
    impossible makes the filter fail at its time (`failed_at`).

    Args:
      initial: `y -> Distribution` of the first state.
      transition: `(previous, time, y) -> Distribution` of the state at `time`, when y is observed. A function with
        parameters is a `jax.tree_util.Partial`.

    Raises:
      TypeError: if one is no function, or, when it is met, returns no distribution.

    >>> from jaxprob.distributions import Normal
    >>> proposal = guided(transition=lambda previous, time, y: Normal((previous + y) / 2, 0.7))
    """
    functions: dict[str, Any] = {"initial": initial, "transition": transition}
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise core.bad_type("particle.guided", name, function, "a function that returns a Distribution")
        if function is not None and not isinstance(function, jax.tree_util.Partial):
            functions[name] = jax.tree_util.Partial(function)
    return Guided(functions["initial"], functions["transition"])


def kalman_guided(linearize: Any = "extended") -> KalmanGuided:
    """A proposal by one Kalman update a particle: normal, from the next state's moments and the linearised observation.

    On a linear-Gaussian model it is the best there is, the law of the state given the one before and y. The laws of
    the state must have full rank, and more weight in their tails than a normal law is not covered.

    Args:
      linearize: as for `kalman.filter`: "extended", "unscented", "cubature", "gauss_hermite", a rule such as
        `kalman.unscented(...)`, or "laplace", for observations whose mean says nothing.

    Raises:
      ValueError: for another rule; or for a model without moments, when it is met.

    >>> proposal = kalman_guided("unscented")
    """
    return KalmanGuided(as_rule("particle.kalman_guided", linearize))


def _fitting(argument: str, law: Any, laws: Laws) -> Distribution:
    """A law that was returned for a state, checked."""
    if not isinstance(law, Distribution):
        got = f"a function that returns {core.describe(law)}"
        raise core.bad_type("particle.guided", argument, got, "a function that returns a Distribution")
    if law.shape != laws.state.shape:
        got = f"a function that returns a law of shape {law.shape}"
        raise core.bad_value("particle.guided", argument, got, f"shape {laws.state.shape}, that of a state")
    return law
