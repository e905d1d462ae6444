"""What processes of tokens share: whole numbers below a vocabulary, and outputs that are logits of them.

An output says what the rest of x_t tells of each token of x_0: logits, up to a constant, of its law given all of x_t
but what stands in its own place. What stands there is added by `log_clean` with the likelihood of the process. So an
output never needs to be sharp where time is near 0, a token that is known to be clean stays itself whatever the
network says, and the reverse transitions are those of the literature.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.diffusion._discrete_schedules import EDGE, Survival, linear_survival
from jaxprob.models.diffusion._process import NoisingProcess, check_time


def normalized(logits: jax.Array) -> jax.Array:
    """Log probabilities over the last axis, in the accumulator's dtype; NaN where every logit is -inf."""
    logits = logits.astype(core.accumulator_dtype(logits.dtype))
    return logits - core.logsumexp(logits, axis=-1, keepdims=True)


def chosen(log_probs: jax.Array, tokens: Any) -> jax.Array:
    """The log probabilities of tokens, without the last axis."""
    return jnp.take_along_axis(log_probs, jnp.expand_dims(jnp.asarray(tokens, jnp.int32), -1), -1)[..., 0]


def certain(tokens: Any, size: int, dtype: Any) -> jax.Array:
    """The log probabilities of laws that know their tokens."""
    return jnp.where(jax.nn.one_hot(tokens, size, dtype=bool), jnp.zeros((), dtype), -jnp.inf)


class TokenProcess(NoisingProcess):
    """A process of tokens 0, ..., vocabulary - 1; every method is of one example of any shape."""

    vocabulary: int
    weighting: str

    @property
    def states(self) -> int:
        """How many values a token of x_t has."""
        return self.vocabulary

    def log_likelihood(self, xt: Any, t: Any, dtype: Any) -> jax.Array:
        """log q(x_t | x_0) of each token for each value of x_0, (..., vocabulary)."""
        raise NotImplementedError

    def log_prior(self, output: Any) -> jax.Array:
        """The log probabilities that an output says before a token's own place is looked at, (..., vocabulary)."""
        return normalized(core.as_float(output))

    def log_clean(self, output: Any, xt: Any, t: Any) -> jax.Array:
        """The log probabilities of each token of x_0 given x_t, (..., vocabulary)."""
        prior = self.log_prior(output)
        # At time 0 itself a network that rules the present token out would leave nothing.
        return normalized(prior + self.log_likelihood(xt, jnp.maximum(core.as_float(t), EDGE), prior.dtype))

    def target(self, x0: Any, xt: Any, t: Any) -> Any:
        self.check_pair("target", x0, xt, t)
        return x0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.vocabulary)

    def check_data(self, function: str, x0: Any) -> None:
        check_tokens(function, x0, self.vocabulary)

    def check_pair(self, function: str, x0: Any, xt: Any, t: Any) -> None:
        """Raises a one-line `ValueError` if all are known and x_0 cannot have become x_t by time t."""
        check_time(function, t)
        self.check_data(function, x0)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((self, x0, xt, t))):
            return
        with jax.ensure_compile_time_eval():
            likelihood = chosen(self.log_likelihood(xt, t, jnp.float32), x0)
            impossible = np.asarray(likelihood == -jnp.inf)
        if impossible.any():
            place = tuple(int(i) for i in np.argwhere(impossible)[0])
            got = f"impossible after x0 at time {t}, first at {place}"
            raise core.bad_value(function, "xt", got, "a state that x0 can have become", "corrupt() draws one")


def check_tokens(function: str, x0: Any, vocabulary: int) -> None:
    """Raises a one-line error unless they are whole numbers below a vocabulary, as far as they are known."""
    if not jnp.issubdtype(jnp.asarray(x0).dtype, jnp.integer):
        raise core.bad_type(function, "x0", core.describe(x0), "tokens, of an integer dtype")
    if isinstance(x0, jax.core.Tracer):
        return
    values = np.asarray(x0)
    outside = values[(values < 0) | (values >= vocabulary)]
    if outside.size:
        expected = f"tokens from 0 to {vocabulary - 1}"
        raise core.bad_value(function, "x0", f"tokens with {outside.ravel()[0]} among them", expected)


def check_vocabulary(function: str, vocabulary: Any) -> None:
    """Raises a `ValueError` unless it is a whole number of at least 2."""
    core.check_whole(function, 2, vocabulary=vocabulary)


def check_survival(function: str, schedule: Any) -> Survival:
    """The schedule, a linear one for None; raises a `TypeError` for what is none."""
    schedule = linear_survival() if schedule is None else schedule
    if not isinstance(schedule, Survival):
        todo = "Make one with models.diffusion, such as cosine_survival()"
        raise core.bad_type(function, "schedule", core.describe(schedule), "a survival schedule", todo)
    return schedule


def check_weighting(function: str, weighting: Any, known: tuple[str, ...]) -> None:
    """Raises a `ValueError` for an unknown weighting."""
    if weighting not in known:
        raise core.bad_value(function, "weighting", core.describe(weighting), f"one of {known}")
