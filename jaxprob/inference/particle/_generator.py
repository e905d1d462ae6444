"""Generators of sequences, element by element, and the potentials that weigh what they make.

A generator is a law of sequences given by its next element: a `Sampler` draws it, a `LanguageModel` has the logits of
all tokens. With a potential G_t of what has been generated so far it stands for the law `p(x) prod_t G_t(x_1:t)`,
tilted to sequences that a reward favours, or that keep a constraint.

Source: Lew, Zhi-Xuan, Grand & Mansinghka (2023), "Sequential Monte Carlo steering of large language models using
probabilistic programs"; Puri, Sudalairaj, Xu, Xu & Srivastava (2025), "A probabilistic inference approach to
inference-time scaling of LLMs using particle-based Monte Carlo methods".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Categorical, Distribution

if TYPE_CHECKING:  # sequence networks take a while to import
    from jaxprob.models.sequence import AutoregressiveModel, AutoregressiveState


class Sampler(NamedTuple):
    """A generator that can be drawn from, and nothing else.

    Attributes:
      initial: pytree, the state before the first element.
      step: `(key, state) -> (element, state)`: draws the next element, a pytree; the state after it. All that is drawn
        is drawn by the key.
    """

    initial: Any
    step: Callable[[core.Key, Any], tuple[Any, Any]]


class LanguageModel(NamedTuple):
    """A generator with the logits of every token: a network with a cache.

    Attributes:
      initial: pytree, the state (the cache) that has seen all but the last token of a prompt, if there is one.
      step: `(state, token) -> (logits (vocabulary,), state)`: reads a token; the logits are those of the next.
      start: (), integer, the last token of the prompt, or what stands before the first.
    """

    initial: Any
    step: Callable[[Any, jax.Array], tuple[jax.Array, Any]]
    start: Any


class Potential(NamedTuple):
    """The factors by which a sequence counts more or less, with a memory of its own: a reward model, a grammar.

    Attributes:
      initial: pytree, the memory before the first element.
      step: `(memory, element) -> (log_potential (), memory)`; -inf for what must not be.
      final: `memory -> log_potential ()`, one factor more where a sequence ends, by its end or by its length; or None.
    """

    initial: Any
    step: Callable[[Any, Any], tuple[Any, Any]]
    final: Callable[[Any], Any] | None = None


def generator(model: AutoregressiveModel, params: Any, state: AutoregressiveState | None = None) -> Any:
    """The generator of an autoregressive density model.

    Args:
      model: of `models.sequence.autoregressive`.
      params: of its network.
      state: what `model.observe(params, prompt)` returned, to go on after a prompt; the initial state by default.

    Returns:
      a `LanguageModel` where elements are one `Categorical` number, a `Sampler` otherwise.

    Raises:
      TypeError: if `model` is no autoregressive model.

    >>> from jaxprob.models import sequence
    >>> net = sequence.stack(sequence.gru(8), depth=1, output=3, vocabulary=3)
    >>> model = sequence.autoregressive(net, lambda outputs: Categorical(logits=outputs))
    >>> params = model.init(jax.random.key(0), jnp.array([0, 2, 1]))
    >>> language_model = generator(model, params, model.observe(params, jnp.array([0, 2]))[1])
    >>> logits, _ = language_model.step(language_model.initial, language_model.start)
    >>> logits.shape
    (3,)
    """
    from jaxprob.models.sequence import AutoregressiveModel

    if not isinstance(model, AutoregressiveModel):
        raise core.bad_type("particle.generator", "model", model, "an autoregressive model of models.sequence")
    state = model.initial_state() if state is None else state
    laws: list[Distribution] = []

    def look(params: Any, state: Any) -> None:
        laws.append(_law(model, params, state.net, state.last)[0])

    jax.eval_shape(look, params, state)
    if isinstance(laws[0], Categorical) and laws[0].batch_shape == ():
        return LanguageModel(state.net, _Logits(model, params), state.last)
    return Sampler(state, _Draw(model, params))


def _law(model: AutoregressiveModel, params: Any, state: Any, last: jax.Array) -> tuple[Distribution, Any]:
    """The law of the element after `last`, and the state of the network that has seen it."""
    tokens = getattr(model.net, "vocabulary", None) is not None
    inputs = last if tokens else core.as_float(last).reshape(-1)
    outputs, state = model.net.apply(params, inputs, state, method="step")
    return model.distribution(outputs.astype(core.accumulator_dtype(outputs.dtype))), state


@core.pytree
class _Logits:
    """Of `generator`: reads a token."""

    model: AutoregressiveModel = core.static()
    params: Any

    def __call__(self, state: Any, token: jax.Array) -> tuple[jax.Array, Any]:
        law, state = _law(self.model, self.params, state, token)
        assert isinstance(law, Categorical)
        return law.log_prob(law.enumerate_support()), state


@core.pytree
class _Draw:
    """Of `generator`: draws an element."""

    model: AutoregressiveModel = core.static()
    params: Any

    def __call__(self, key: core.Key, state: AutoregressiveState) -> tuple[jax.Array, AutoregressiveState]:
        return self.model.step(self.params, key, None, state)


def prefix_potential(
    log_potential: Callable[[Any, jax.Array], Any] | None = None,
    length: int = 1,
    *,
    final: Callable[[Any, jax.Array], Any] | None = None,
    like: Any = 0,
) -> Potential:
    """A potential that looks at all elements so far. Its memory is a buffer of them, copied with each sequence.

    Args:
      log_potential: `(elements (length, ...), number ()) -> scalar`, at each element, of which there are `number`, this
        one included; zeros behind them. None for none.
      length: the greatest number of elements.
      final: of the same arguments, where a sequence ends; or None.
      like: an element, for its shape and dtype; an integer by default.

    Raises:
      TypeError: if a function is none.
      ValueError: for a length below 1.

    >>> no_two_alike = prefix_potential(lambda x, n: jnp.where((n > 1) & (x[n - 1] == x[n - 2]), -jnp.inf, 0.0), 5)
    >>> _, memory = no_two_alike.step(no_two_alike.initial, jnp.int32(3))
    >>> no_two_alike.step(memory, jnp.int32(3))[0].item()
    -inf
    """
    name = "particle.prefix_potential"
    core.check_whole(name, length=length)
    for argument, function in (("log_potential", log_potential), ("final", final)):
        if not callable(function) and not (function is None and callable(log_potential or final)):
            raise core.bad_type(name, argument, function, "a function of all elements and their number")
    buffer = jax.tree.map(lambda leaf: jnp.zeros((length, *jnp.shape(leaf)), jnp.result_type(leaf)), like)
    of_step, of_whole = core.as_partial(log_potential), core.as_partial(final)
    return Potential((buffer, jnp.int32(0)), _Append(of_step), None if final is None else _Whole(of_whole))


@core.pytree
class _Append:
    """Of `prefix_potential`: one element more."""

    function: Any

    def __call__(self, memory: Any, element: Any) -> tuple[Any, Any]:
        buffer, number = memory
        buffer = jax.tree.map(lambda row, new: row.at[number].set(jnp.asarray(new).astype(row.dtype)), buffer, element)
        value = 0.0 if self.function is None else self.function(buffer, number + 1)
        return value, (buffer, number + 1)


@core.pytree
class _Whole:
    """Of `prefix_potential`: all elements."""

    function: Any

    def __call__(self, memory: Any) -> Any:
        return self.function(*memory)
