"""Discrete diffusion in which noise looks like data: uniform tokens, coin flips, or any chain of transition matrices.

Whether a token of x_t is noise cannot be seen, so that it may change more than once on the way back. Of an output mu
(see `TokenProcess`) the reverse transition is `p(x_s | x_t) ~ q(x_t | x_s) sum over x_0 of q(x_s | x_0) mu(x_0)`, which
is exact, token by token, where mu is.

Sources: Hoogeboom, Nielsen, Jaini, Forré & Welling (2021), "Argmax flows and multinomial diffusion"; Austin, Johnson,
Ho, Tarlow & van den Berg (2021), "Structured denoising diffusion models in discrete state-spaces"; Schiff et al.
(2025), "Simple guidance mechanisms for discrete diffusion models", for the bound in continuous time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.models.diffusion._discrete_schedules import EDGE, Survival
from jaxprob.models.diffusion._process import check_time
from jaxprob.models.diffusion._tokens import (
    TokenProcess,
    certain,
    check_survival,
    check_vocabulary,
    check_weighting,
    chosen,
    normalized,
)

WEIGHTINGS = ("bound", "simple")


class MixingProcess(TokenProcess):
    """A process of tokens whose noise looks like data: reverse transitions from the forward ones."""

    # The forward transitions.

    def log_forward(self, log_probs: jax.Array, s: Any) -> jax.Array:
        """log q(x_s), (..., states), for independent tokens x_0 with log probabilities (..., vocabulary)."""
        raise NotImplementedError

    def log_backward(self, xt: Any, t: Any, s: Any, dtype: Any) -> jax.Array:
        """log q(x_t | x_s) of each token for each value of x_s, (..., states)."""
        raise NotImplementedError

    def log_likelihood(self, xt: Any, t: Any, dtype: Any) -> jax.Array:
        return self.log_backward(xt, t, 0.0, dtype)[..., : self.vocabulary]

    # The model that a denoiser makes.

    def _log_reverse(self, log_prior: jax.Array, xt: Any, t: Any, s: Any) -> jax.Array:
        """log p(x_s | x_t), (..., states)."""
        return normalized(self.log_backward(xt, t, s, log_prior.dtype) + self.log_forward(log_prior, s))

    def log_reverse(self, output: Any, xt: Any, t: Any, s: Any) -> jax.Array:
        """The log probabilities of each token of x_s given x_t, (..., states)."""
        return self._log_reverse(self.log_prior(output), xt, t, s)

    def reverse_step(self, key: core.Key, xt: Any, output: Any, t: Any, s: Any) -> jax.Array:
        xt = jnp.asarray(xt)
        return core.random.categorical(key, self.log_reverse(output, xt, t, s), mode="high").astype(xt.dtype)

    def step_divergence(self, output: Any, x0: Any, xt: Any, t: Any, s: Any, key: core.Key | None = None) -> jax.Array:
        check_time("step_divergence", s, "s")
        self.check_pair("step_divergence", x0, xt, t)
        log_p = self.log_reverse(output, xt, t, s)
        log_q = self._log_reverse(certain(x0, self.vocabulary, log_p.dtype), xt, t, s)
        return _divergence(log_q, log_p)

    # Learning.

    def weight(self, t: Any) -> jax.Array:
        return jnp.ones_like(core.as_float(t))

    def loss(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        if self.weighting == "bound":
            return self.bound_rate(output, x0, xt, t)
        self.check_pair("loss", x0, xt, t)
        return -jnp.mean(chosen(self.log_clean(output, xt, t), x0))


def _divergence(log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """KL[q, p] summed over tokens; what q never does adds nothing, whatever p says of it."""
    possible = log_q > -jnp.inf
    gap = jnp.where(possible, log_q, 0) - jnp.where(possible, log_p, 0)
    return jnp.sum(jnp.exp(log_q) * gap)


@core.pytree
class Uniform(MixingProcess):
    """Diffusion to uniform tokens; `uniform` makes it. x_t are int32 tokens of the vocabulary."""

    schedule: Survival
    vocabulary: int = core.static()
    weighting: str = core.static(default="bound")

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> jax.Array:
        check_time("corrupt", t)
        self.check_data("corrupt", x0)
        tokens, noise = jnp.asarray(x0).astype(jnp.int32), self.schedule.noise(t)
        noisy = core.random.uniform(core.fold(key, 0), tokens.shape, noise.dtype) < noise
        return jnp.where(noisy, self.sample_prior(core.fold(key, 1), tokens.shape), tokens)

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        return core.random.randint(key, shape, 0, self.vocabulary, jnp.int32 if dtype is None else dtype)

    def log_forward(self, log_probs: jax.Array, s: Any) -> jax.Array:
        alpha, noise = (value.astype(log_probs.dtype) for value in (self.schedule(s), self.schedule.noise(s)))
        # In logarithms, so that a token that is nearly ruled out has its gradient.
        return core.logaddexp(log_probs + core.safe_log(alpha), core.safe_log(noise / self.vocabulary))

    def log_backward(self, xt: Any, t: Any, s: Any, dtype: Any) -> jax.Array:
        left = self.schedule(s)
        moved = ((self.schedule.noise(t) - self.schedule.noise(s)) / left).astype(dtype) / self.vocabulary
        stayed = (self.schedule(t) / left).astype(dtype) + moved
        here = jax.nn.one_hot(xt, self.vocabulary, dtype=bool)
        return jnp.where(here, core.safe_log(stayed), core.safe_log(moved))

    def _masses(self, log_prior: jax.Array, xt: Any, t: Any) -> tuple[jax.Array, ...]:
        """alpha; the prior, K q(x_t = y), both (..., vocabulary), and both for the present token, (..., 1)."""
        probs = jnp.exp(log_prior)
        alpha, noise = (value.astype(probs.dtype) for value in (self.schedule(t), self.schedule.noise(t)))
        masses = noise + self.vocabulary * alpha * probs
        here = jnp.expand_dims(jnp.asarray(xt, jnp.int32), -1)
        prob, mass = (jnp.take_along_axis(values, here, -1) for values in (probs, masses))
        return alpha, probs, masses, prob, mass

    def reverse_rates(self, output: Any, xt: Any, t: Any) -> jax.Array:
        """The rates at which each token jumps to each other one when time goes back, (..., states)."""
        t = jnp.clip(core.as_float(t), EDGE, 1 - EDGE)
        alpha, _, masses, _, mass = self._masses(self.log_prior(output), xt, t)
        rates = -self.schedule.slope(t).astype(alpha.dtype) / (alpha * self.vocabulary) * masses / mass
        return jnp.where(jax.nn.one_hot(xt, self.vocabulary, dtype=bool), jnp.zeros_like(rates), rates)

    def bound_rate(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        self.check_pair("bound_rate", x0, xt, t)
        t, size = jnp.maximum(core.as_float(t), EDGE), self.vocabulary
        alpha, probs, masses, prob, mass = self._masses(self.log_prior(output), xt, t)
        _, exact, exact_masses, sure, exact_mass = self._masses(certain(x0, size, probs.dtype), xt, t)
        slope, noise = (-self.schedule.slope(t)).astype(probs.dtype), self.schedule.noise(t).astype(probs.dtype)
        # Jumps to y have the rates `slope / (alpha K)` times q = exact_masses / exact_mass in truth and times p =
        # masses / mass in the model, and the divergence between them is `q log(q / p) - q + p`. Where q is nearly p, as
        # at late times where alpha vanishes, it is p u^2 psi(u) for u = q / p - 1 = K alpha w, and alpha cancels.
        q, p = exact_masses / exact_mass, masses / mass
        w = noise * ((exact - sure) - (probs - prob)) + size * alpha * (exact * prob - probs * sure)
        w = w / (exact_mass * masses)
        near = jnp.abs(size * alpha * w) < 0.1
        w = jnp.where(near, w, jnp.zeros_like(w))
        small = slope * size * alpha * p * w**2 * _excess(size * alpha * w)
        q = jnp.where(near, jnp.ones_like(q), q)
        far = slope / (size * jnp.maximum(alpha, 1e-3 / size)) * (core.xlogy(q, q / p) - q + p)
        jump = ~jax.nn.one_hot(xt, size, dtype=bool)
        return jnp.sum(jnp.where(jump, jnp.where(near, small, far), jnp.zeros_like(far)))

    def bound_ends(self, x0: Any, key: core.Key | None = None, denoise: Any = None) -> jax.Array:
        self.check_data("bound_ends", x0)
        return jnp.zeros(())  # x_1 is noise and x_0 is data, exactly


def _excess(u: jax.Array) -> jax.Array:
    """`((1 + u) log(1 + u) - u) / u^2` for |u| <= 0.1, by its series."""
    total = jnp.zeros_like(u)
    for k in range(13, -1, -1):
        total = 1 / ((k + 1) * (k + 2)) - u * total
    return total


def uniform(vocabulary: int, schedule: Survival | None = None, weighting: str = "bound") -> Uniform:
    """Diffusion that replaces tokens by uniform ones; also called multinomial.

    A denoiser sees int32 tokens, and returns logits (..., vocabulary) of what the rest of x_t tells of each token of
    x_0; the process adds what the token in its place tells.

    Args:
      vocabulary: number of tokens, at least 2.
      schedule: the probability that a token was never replaced; `linear_survival()` by default.
      weighting: of the loss: "bound" (the rate of the bound, which makes a loss at a random time an unbiased estimate
        of it) or "simple" (the cross-entropy of x_0 given x_t, the mean over tokens).

    Raises:
      TypeError: if the schedule is none.
      ValueError: if the vocabulary is no whole number of at least 2, or for an unknown weighting.

    >>> process = uniform(4)
    >>> nothing = jnp.zeros((1, 4))  # logits that know nothing
    >>> bool(jnp.argmax(process.log_clean(nothing, jnp.array([2]), 0.5)) == 2)
    True

    Source: Hoogeboom et al. (2021), section 4; Lou, Meng & Ermon (2024), "Discrete diffusion modeling by estimating the
    ratios of the data distribution", section 3, with the ratios of Schiff et al. (2025).
    """
    name = "diffusion.uniform"
    check_vocabulary(name, vocabulary)
    check_weighting(name, weighting, WEIGHTINGS)
    return Uniform(check_survival(name, schedule), int(vocabulary), weighting)


@core.pytree
class Binomial(Uniform):
    """Diffusion of bits to coin flips; `binomial` makes it. Outputs are log odds, of the shape of x."""

    def log_prior(self, output: Any) -> jax.Array:
        output = core.as_float(output)
        output = output.astype(core.accumulator_dtype(output.dtype))
        return jnp.stack([core.log_sigmoid(-output), core.log_sigmoid(output)], -1)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


def binomial(schedule: Survival | None = None, weighting: str = "bound") -> Binomial:
    """Diffusion of bits, 0 and 1, to coin flips.

    A denoiser sees int32 bits and returns as many log odds of a 1, of what the rest of x_t tells of each.

    Args and errors are those of `uniform`; the linear schedule is the paper's `beta_i = 1 / (steps - i + 1)`.

    >>> process = binomial()
    >>> process.output_shape((20,)), process.vocabulary
    ((20,), 2)

    Source: Sohl-Dickstein, Weiss, Maheswaranathan & Ganguli (2015), "Deep unsupervised learning using nonequilibrium
    thermodynamics", table 1; with a network that says x_0 where theirs says x_s.
    """
    name = "diffusion.binomial"
    check_weighting(name, weighting, WEIGHTINGS)
    return Binomial(check_survival(name, schedule), 2, weighting)


@core.pytree
class Discrete(MixingProcess):
    """Diffusion by transition matrices; `discrete` makes it. x_t are int32 states.

    Args:
      transitions: (steps, states, states), entry (i, a, b) the probability of b after step i given a before it.
      products: (steps + 1, states, states), of the first 0, 1, ... matrices.
      vocabulary: how many of the states are data, the first ones.
      weighting: of the loss.
    """

    transitions: jax.Array
    products: jax.Array
    vocabulary: int = core.static()
    weighting: str = core.static(default="bound")

    @property
    def steps(self) -> int:
        """How many steps there are from data to noise."""
        return self.transitions.shape[0]

    @property
    def states(self) -> int:
        return self.transitions.shape[1]

    def step_of(self, t: Any) -> jax.Array:
        """How many steps are taken by a time, (): times within a step are those of its end."""
        # The margin is for the rounding of i / steps.
        return jnp.clip(jnp.ceil(core.as_float(t) * self.steps - 1e-3), 0, self.steps).astype(jnp.int32)

    def _product(self, t: Any, dtype: Any) -> jax.Array:
        return self.products[self.step_of(t)].astype(dtype)

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> jax.Array:
        check_time("corrupt", t)
        self.check_data("corrupt", x0)
        rows = core.safe_log(self._product(t, self.products.dtype))[jnp.asarray(x0)]
        return core.random.categorical(key, rows, mode="high").astype(jnp.int32)

    def _log_prior_state(self) -> jax.Array:
        """Log probabilities of the states at time 1: where an even mixture of all tokens ends, (states,)."""
        return core.safe_log(jnp.mean(self.products[-1, : self.vocabulary], 0))

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        drawn = core.random.categorical(key, self._log_prior_state(), shape=shape, mode="high")
        return drawn.astype(jnp.int32 if dtype is None else dtype)

    def log_forward(self, log_probs: jax.Array, s: Any) -> jax.Array:
        rest = jnp.full((*log_probs.shape[:-1], self.states - self.vocabulary), -jnp.inf, log_probs.dtype)
        start = jnp.concatenate([log_probs, rest], -1)
        later = core.safe_log(_through(jnp.exp(start), self._product(s, log_probs.dtype)))
        # A product with the identity would lose tokens that are nearly ruled out.
        return jnp.where(self.step_of(s) == 0, start, later)

    def log_backward(self, xt: Any, t: Any, s: Any, dtype: Any) -> jax.Array:
        last, first = self.step_of(t), self.step_of(s)
        transitions = self.transitions.astype(dtype)

        def one_step_back(masses: jax.Array, i: jax.Array) -> tuple[jax.Array, tuple[()]]:
            return _through(masses, transitions[last - 1 - i].T), ()

        here = jax.nn.one_hot(xt, self.states, dtype=dtype)
        masses, _ = scan.bounded(one_step_back, here, last - first, self.steps)
        return core.safe_log(masses)

    def log_likelihood(self, xt: Any, t: Any, dtype: Any) -> jax.Array:
        columns = core.safe_log(self._product(t, dtype)).T
        return columns[jnp.asarray(xt), : self.vocabulary]

    def bound_rate(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        """The number of steps times the divergence of the step that the time is in: its integral is the bound."""
        end = self.step_of(t)
        times = (core.as_float(i) / self.steps for i in (end, jnp.maximum(end - 1, 0)))
        return self.steps * self.step_divergence(output, x0, xt, *times)

    def bound_ends(self, x0: Any, key: core.Key | None = None, denoise: Any = None) -> jax.Array:
        """KL between where x_0 ends and the prior; there is nothing else, as x at time 0 is the data."""
        self.check_data("bound_ends", x0)
        log_q = core.safe_log(self.products[-1])[jnp.asarray(x0)]
        log_p = jnp.broadcast_to(self._log_prior_state(), log_q.shape)
        return _divergence(log_q, log_p)


def _through(masses: jax.Array, matrix: jax.Array) -> jax.Array:
    """Row vectors (..., states) times a matrix."""
    flat = core.matmul(masses.reshape(-1, masses.shape[-1]), matrix)
    return flat.reshape(*masses.shape[:-1], matrix.shape[-1])


def discrete(transitions: Any, vocabulary: int | None = None, weighting: str = "bound") -> Discrete:
    """Diffusion in discrete time by any transition matrices: near tokens, similar words, masks, ...

    The time i / steps is that after i steps; train with `loss(..., steps=...)` of this number or without, and sample
    with as many steps or fewer. The prior is where an even mixture of all tokens ends.

    Args:
      transitions: (steps, states, states), rows of probabilities: of the states after a step, given that before it.
      vocabulary: how many of the states are data, the first ones; all by default. Further ones are such as a mask.
      weighting: of the loss; see `uniform`.

    Raises:
      ValueError: if the matrices are not square, have rows that are no probabilities, or there are none; if the
        vocabulary is no whole number from 2 to the number of states; for an unknown weighting.

    >>> near = jnp.array([[0.8, 0.2, 0.0], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]])
    >>> process = discrete(jnp.stack([near] * 10))
    >>> process.steps, process.states
    (10, 3)

    Source: Austin et al. (2021), section 3.
    """
    name = "diffusion.discrete"
    transitions = core.as_float(jnp.asarray(transitions))
    expected = "(steps, states, states), one step or more and two states or more"
    shape = transitions.shape
    if len(shape) != 3 or shape[0] < 1 or shape[1] != shape[2] or shape[1] < 2:
        raise core.bad_value(name, "transitions", f"of shape {shape}", expected)
    if not isinstance(transitions, jax.core.Tracer):
        values = np.asarray(transitions, float)
        # False for NaN too. A row without any probability is a transition that cannot be made.
        fine = np.all(values >= 0, -1) & (np.abs(values.sum(-1) - 1) < 1e-4)
        if not fine.all():
            step, row = (int(i) for i in np.argwhere(~fine)[0])
            got = f"{values[step, row].tolist()} in row {row} of step {step}"
            raise core.bad_value(name, "transitions", got, "probabilities that sum to one")
    vocabulary = shape[1] if vocabulary is None else vocabulary
    check_vocabulary(name, vocabulary)
    if vocabulary > shape[1]:
        raise core.bad_value(name, "vocabulary", vocabulary, f"at most the number of states, {shape[1]}")
    check_weighting(name, weighting, WEIGHTINGS)

    def multiply(product: jax.Array, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = core.matmul(product, matrix)
        product = product / jnp.sum(product, -1, keepdims=True)  # rounding adds up over many steps
        return product, product

    start = jnp.eye(shape[1], dtype=transitions.dtype)
    _, later = scan.scan(multiply, start, transitions)
    products = jnp.concatenate([jnp.expand_dims(start, 0), later])
    return Discrete(transitions, products, int(vocabulary), weighting)
