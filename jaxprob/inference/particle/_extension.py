"""One element more: what sequential Monte Carlo, particle Gibbs and beam search over sequences have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.particle._generator import LanguageModel, Potential, Sampler
from jaxprob.inference.smc import FeynmanKac

OPTIMAL = "optimal"


class Branch(NamedTuple):
    """A partial sequence, but for the elements before the last, which lie along its line of descent.

    Attributes:
      state: of the generator.
      memory: of the potential.
      element: the last one.
      ended: (), bool.
      length: (), int32, elements so far.
      log_potential: (), sum of the log potentials so far.
      log_probability: (), log of the product of the probabilities of the tokens so far; None for a sampler.
      increment: (), log of what the last element multiplies the weight by.
      key_data: what a sampler drew the last element by; None for a language model.
    """

    state: Any
    memory: Any
    element: Any
    ended: Any
    length: Any
    log_potential: Any
    log_probability: Any
    increment: Any
    key_data: Any


@core.pytree
class Program:
    """A generator with a potential: what a program that is compiled once is called with.

    Attributes:
      generator: a `Sampler` or `LanguageModel`.
      potential: a `Potential`, a function `(state, element) -> scalar`, or None.
      proposal: a function `(state, log_probabilities) -> logits`, or None.
      end: a token, a function of an element, or None.
      inverse_temperature: (), the power of the potentials; None for 1.
      optimal: whether tokens are proposed by their probabilities times their potentials.
    """

    generator: Any
    potential: Any
    proposal: Any
    end: Any
    inverse_temperature: Any
    optimal: bool = core.static()


def as_program(
    name: str, generator: Any, potential: Any, end: Any, proposal: Any = None, inverse_temperature: Any = None
) -> Program:
    """Checks the arguments that all methods have in common."""
    if not isinstance(generator, (Sampler, LanguageModel)):
        todo = "particle.generator(model, params) makes one of an autoregressive model"
        raise core.bad_type(name, "generator", generator, "a particle.Sampler or LanguageModel", todo)
    generator = generator._replace(step=_function(name, "generator.step", generator.step))
    if isinstance(potential, Potential):
        final = potential.final if potential.final is None else _function(name, "potential.final", potential.final)
        potential = potential._replace(step=_function(name, "potential.step", potential.step), final=final)
    elif potential is not None:
        potential = _function(name, "potential", potential)
    if callable(end):
        end = core.as_partial(end)
    elif end is not None:
        if jnp.shape(end) or not jnp.issubdtype(jnp.result_type(end), jnp.integer):
            raise core.bad_value(name, "end", end, "a token, or a function of an element")
        end = jnp.asarray(end)
    optimal = isinstance(proposal, str) and proposal == OPTIMAL
    if proposal is not None and not isinstance(generator, LanguageModel):
        todo = "A sampler proposes by its own step, with a potential that takes it back"
        raise core.bad_value(name, "proposal", core.describe(proposal), "None for a Sampler", todo)
    if proposal is not None and not optimal and not callable(proposal):
        wanted = f"None, {OPTIMAL!r} or a function (state, log_probabilities) -> logits"
        raise core.bad_value(name, "proposal", proposal, wanted)
    proposal = None if optimal or proposal is None else core.as_partial(proposal)
    return Program(generator, potential, proposal, end, inverse_temperature, optimal)


def _function(name: str, argument: str, value: Any) -> Any:
    if not callable(value):
        raise core.bad_type(name, argument, value, "a function")
    return core.as_partial(value)


def root(program: Program) -> Branch:
    """Before the first element."""
    generator, potential = program.generator, program.potential
    language = isinstance(generator, LanguageModel)
    return Branch(
        state=jax.tree.map(jnp.asarray, generator.initial),
        memory=jax.tree.map(jnp.asarray, potential.initial) if isinstance(potential, Potential) else None,
        element=jnp.asarray(generator.start) if language else None,
        ended=jnp.zeros((), bool),
        length=jnp.int32(0),
        log_potential=0.0,
        log_probability=0.0 if language else None,
        increment=0.0,
        key_data=None,
    )


def extend(
    program: Program, key: core.Key | None, branch: Branch, last: Any, pin: Any = None, pinned: Any = True
) -> Branch:
    """Draws the next element and weighs it.

    Args:
      program: the law.
      key: what it draws by; None where the next token is `pin` for certain.
      branch: the sequence so far.
      last: whether it ends here at the latest.
      pin: the next token of a language model, or the key data of a sampler's next step, where it is `pinned`; or None.
      pinned: (), bool.
    """
    if isinstance(program.generator, Sampler):
        assert key is not None
        data = jax.random.key_data(key)
        data = data if pin is None else jnp.where(pinned, pin, data)
        own = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
        element, state = program.generator.step(own, branch.state)
        return append(program, branch, state, element, None, last, key_data=data)
    log_probabilities, state = next_tokens(program, branch)
    if key is None:
        return append(program, branch, state, pin, _of(log_probabilities, pin), last)
    proposed = None
    if program.optimal:
        tokens = jnp.arange(log_probabilities.size, dtype=branch.element.dtype)
        values = jax.vmap(lambda token: tempered(program, weigh(program, branch, state, token, last)[0]))(tokens)
        proposed = log_probabilities + values.astype(log_probabilities.dtype)
    elif program.proposal is not None:
        proposed = _logits(program.proposal(state, log_probabilities), "the value of the proposal")
    # "high": plain Gumbel noise in float32 never exceeds 16, which drops tokens rarer than 1e-7.
    token = core.random.categorical(key, log_probabilities if proposed is None else proposed, mode="high")
    token = token if pin is None else jnp.where(pinned, pin.astype(token.dtype), token)
    log_probability, log_ratio = _of(log_probabilities, token), None
    if proposed is not None:
        proposed, some = _normalized(proposed)
        log_ratio = jnp.where(some, log_probability - _of(proposed, token), -jnp.inf)
    return append(program, branch, state, token, log_probability, last, log_ratio)


def append(
    program: Program,
    branch: Branch,
    state: Any,
    element: Any,
    log_probability: Any,
    last: Any,
    log_ratio: Any = None,
    key_data: Any = None,
) -> Branch:
    """The branch with one element more; one that has ended stays as it is.

    Args:
      program: the law.
      branch: the sequence so far.
      state: of the generator, from which the element came.
      element: the next.
      log_probability: of the next token, or None.
      last: as for `extend`.
      log_ratio: log of its probability over that of its proposal; None where it was drawn from its law.
      key_data: what it was drawn by, or None.
    """
    if branch.element is not None:
        # After the end every element is the last one, and so is what it was drawn by.
        new = jax.tree.map(lambda leaf, old: jnp.asarray(leaf).astype(jnp.result_type(old)), element, branch.element)
        element = jax.tree.map(lambda old, leaf: jnp.where(branch.ended, old, leaf), branch.element, new)
        key_data = None if key_data is None else jnp.where(branch.ended, branch.key_data, key_data)
    value, memory = weigh(program, branch, state, element, last)
    dtype = core.accumulator_dtype(core.result_dtype(value, state if log_probability is None else log_probability))
    value = value.astype(dtype)
    increment = tempered(program, value)
    if log_probability is not None:
        log_probability = log_probability.astype(dtype)
        # A token that was drawn is possible: a network that says otherwise is broken, and so are the weights then.
        plain = jnp.where(jnp.isfinite(log_probability), 0, log_probability)
        increment = increment + (plain if log_ratio is None else log_ratio.astype(dtype))
    more = lambda term: jnp.where(branch.ended, 0, term)  # noqa: E731
    return Branch(
        state=state,
        memory=memory,
        element=element,
        ended=branch.ended | _ends(program, element),
        length=branch.length + (~branch.ended).astype(jnp.int32),
        log_potential=branch.log_potential + more(value),
        log_probability=None if log_probability is None else branch.log_probability + more(log_probability),
        increment=more(increment),
        key_data=key_data,
    )


def next_tokens(program: Program, branch: Branch) -> tuple[jax.Array, Any]:
    """Log probabilities (vocabulary,) of the next token of a language model, and the state they came from."""
    logits, state = program.generator.step(branch.state, branch.element)
    return _normalized(_logits(logits, "the logits of generator.step"))[0], state


def weigh(program: Program, branch: Branch, state: Any, element: Any, last: Any) -> tuple[jax.Array, Any]:
    """Log potential () of one element more, and the memory after it."""
    potential = program.potential
    if potential is None:
        return core.as_float(0.0), None
    if not isinstance(potential, Potential):
        return _number(potential(state, element)), None
    value, memory = potential.step(branch.memory, element)
    value = _number(value)
    if potential.final is not None:
        final = _number(potential.final(memory))
        dtype = core.result_dtype(value, final)
        value = value.astype(dtype) + jnp.where(last | _ends(program, element), final.astype(dtype), 0)
    return value, memory


def tempered(program: Program, value: jax.Array) -> jax.Array:
    """A log potential times the inverse temperature; at zero it does not count, even where it is infinite."""
    beta = program.inverse_temperature
    if beta is None:
        return value
    beta = beta.astype(value.dtype)
    return jnp.where(beta == 0, 0, beta * value)


def feynman_kac(program: Program) -> FeynmanKac:
    """The model whose particles are branches and whose data say at which time sequences end at the latest."""
    return FeynmanKac(
        initial=lambda key, last: extend(program, key, root(program), last),
        log_initial_potential=lambda branch, last: branch.increment,
        transition=lambda key, branch, time, last: extend(program, key, branch, last),
        log_potential=lambda before, branch, time, last: branch.increment,
    )


def _ends(program: Program, element: Any) -> jax.Array:
    if program.end is None:
        return jnp.zeros((), bool)
    if callable(program.end):
        return jnp.asarray(program.end(element))
    if len(jax.tree.leaves(element)) != 1 or jnp.shape(element):
        raise core.bad_value("particle", "end", program.end, "a function of an element, for elements that are no token")
    return element == program.end.astype(element.dtype)


def _number(value: Any) -> jax.Array:
    value = core.as_float(value)
    if value.shape:
        got, todo = f"of shape {value.shape}", "Sum over everything the potential is a product of"
        raise core.bad_value("particle", "the value of the potential", got, "one number", todo)
    return value


def _logits(logits: Any, what: str) -> jax.Array:
    logits = core.as_float(logits)
    if logits.ndim != 1:
        raise core.bad_value("particle", what, f"of shape {logits.shape}", "(vocabulary,), for one token")
    return logits.astype(core.accumulator_dtype(logits.dtype))


def _normalized(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log probabilities, and whether any is above -inf."""
    total = core.logsumexp(logits)
    return logits - jnp.where(total == -jnp.inf, 0, total), total != -jnp.inf


def _of(row: jax.Array, token: jax.Array) -> jax.Array:
    """An entry of a row; NaN for a token that does not exist."""
    return jnp.where(token >= 0, row.at[token].get(mode="fill", fill_value=jnp.nan), jnp.nan)
