"""Gibbs sampling as a combinator: every block of a position moves by a kernel of its own, given the rest.

A block's kernel is built of the block's conditional density at each visit. What its `init` computes of the other
blocks (a log density, a gradient) has gone stale since the last visit and is computed anew; all else that its state
holds (a momentum, tuning) stays.

Source: Geman & Geman (1984); Tierney (1994), "Markov chains for exploring posterior distributions".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp

from jaxprob import core, scan

Names = str | tuple[str, ...]


class Exact(NamedTuple):
    """A block's conditional law that can be drawn from: a block of `gibbs`.

    Attributes:
      sample: `(key, position) -> new values of the block`, of the whole position: a value for a block of one name, a
        dict by name for a block of several.
    """

    sample: Callable[[core.Key, Any], Any]


class GibbsState(NamedTuple):
    """The state of a chain.

    Attributes:
      position: pytree with named entries, where the chain is.
      blocks: dict by block, the state of its kernel at its last visit; of `Exact` blocks nothing.
    """

    position: Any
    blocks: dict[str, Any]


class Conditional:
    """The log density of a block given the rest, up to a constant: the joint one, the rest held fixed.

    Attributes:
      rest: dict by name, the entries of the position that are not of the block.
    """

    rest: dict[str, Any]

    def __init__(self, log_density: core.LogDensity, position: Any, names: Names) -> None:
        self._log_density, self._position, self._names = log_density, position, names
        self.rest = rest(position, names)

    def __call__(self, value: Any) -> Any:
        return self._log_density(write(self._position, self._names, value))


Update = Callable[[Conditional], core.Algorithm] | Exact


def gibbs(log_density: core.LogDensity, blocks: Mapping[Names, Update], *, order: str = "systematic") -> core.Algorithm:
    """Gibbs sampling: one step visits every block once, and moves it by a kernel of its own given the rest.

    A visit costs what a step of the kernel costs, and one evaluation more of the log density (with its gradient, if the
    kernel's state holds one), since the rest has moved; a single block that is the whole position costs nothing more.

    Args:
      log_density: `position -> scalar`, of all blocks together.
      blocks: from an entry's name, or a tuple of names, to what moves it: a factory `log_density -> Algorithm` such as
        `partial(mcmc.nuts, step_size=0.3)`, which is given the conditional density of the block, or an `Exact` sampler.
        The position of a kernel is the entry itself for one name, a dict by name for several. The conditional density
        has the other entries in a dict `rest`.
      order: "systematic", the order of `blocks`, or "random", an order drawn anew for each step: then a step is
        reversible if the kernels are. Under `vmap` every visit in random order costs as much as all blocks together.

    Returns:
      Algorithm whose position is a dict, a NamedTuple or a dataclass with the names of the blocks, whose state is a
      `GibbsState`, and whose info is a dict from each block that has a kernel (several names are joined by "+") to the
      kernel's info. A log density there is that of the whole position, just after the block's move.

    Raises:
      TypeError: if an argument or a block's kernel cannot be called.
      ValueError: if a name is in two blocks, `order` is unknown, or, at `init`, a position has other names.

    >>> from functools import partial
    >>> from jaxprob.inference import mcmc
    >>> def log_density(q):
    ...     return -0.5 * (q["x"] - q["on"]) ** 2 + 0.3 * q["on"]
    >>> kernel = gibbs(
    ...     log_density,
    ...     {"on": partial(mcmc.discrete_gibbs, num_categories=2), "x": partial(mcmc.hmc, step_size=0.5)},
    ... )
    >>> state = kernel.init({"x": jnp.float32(0.0), "on": jnp.int32(1)}, jax.random.key(0))
    >>> state, info = kernel.step(jax.random.key(1), state)
    >>> int(info["x"].num_steps)
    16

    Source: Tierney (1994).
    """
    updates = _checked(log_density, blocks, order)
    labels = [_label(names) for names in updates]

    def kernel_of(names: Names, position: Any) -> core.Algorithm:
        update = updates[names]
        assert not isinstance(update, Exact)
        return update(Conditional(log_density, position, names))

    def init(position: Any, key: core.Key) -> GibbsState:
        position = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), position)
        _check_names(position, updates)
        key = core.as_key(key, "gibbs")
        states = {
            label: ()
            if isinstance(update, Exact)
            else kernel_of(names, position).init(read(position, names), core.fold(key, index))
            for index, (label, (names, update)) in enumerate(zip(labels, updates.items(), strict=True))
        }
        return GibbsState(position, states)

    def visit(names: Names, key: core.Key, position: Any, state: Any) -> tuple[Any, Any, Any]:
        value, update = read(position, names), updates[names]
        if isinstance(update, Exact):
            drawn = update.sample(key, position)
            core.check_same_structure("gibbs", f"what the sampler of block {_label(names)!r} returns", drawn, value)
            return write(position, names, drawn), (), ()

        def begin(others: dict[str, Any], value: Any, key: core.Key) -> Any:
            return kernel_of(names, _replace(position, others)).init(value, key)

        state = refresh(begin, rest(position, names), (value, core.fold(key, 0)), state)
        state, info = kernel_of(names, position).step(core.fold(key, 1), state)
        return write(position, names, core.position_of(state)), state, info

    def in_order(key: core.Key, state: GibbsState) -> tuple[GibbsState, Any]:
        position, states, infos = state.position, {}, {}
        for index, (label, names) in enumerate(zip(labels, updates, strict=True)):
            position, states[label], infos[label] = visit(names, core.fold(key, index), position, state.blocks[label])
        return GibbsState(position, states), infos

    def in_random_order(key: core.Key, state: GibbsState) -> tuple[GibbsState, Any]:
        shapes, implementation = jax.eval_shape(in_order, key, state)[1], jax.random.key_impl(key)

        def branch(names: Names, data: jax.Array, carry: tuple[GibbsState, Any]) -> tuple[GibbsState, Any]:
            (position, states), infos = carry
            label, key = _label(names), jax.random.wrap_key_data(data, impl=implementation)
            position, new, info = visit(names, key, position, states[label])
            return GibbsState(position, {**states, label: new}), {**infos, label: info}

        def one(carry: tuple[GibbsState, Any], index: jax.Array) -> tuple[GibbsState, Any]:
            # Under vmap a switch selects among what the branches are given, which counts as using a key.
            data = jax.random.key_data(core.fold(key, index))
            return core.switch(chosen[index], [partial(branch, names) for names in updates], data, carry)

        chosen = core.random.permutation(core.fold(key, len(updates)), len(updates))
        nothing = jax.tree.map(lambda info: jnp.zeros(info.shape, info.dtype), shapes)
        return scan.repeat(one, (state, nothing), len(updates))

    def step(key: core.Key, state: GibbsState) -> tuple[GibbsState, dict[str, Any]]:
        state, infos = (in_order if order == "systematic" else in_random_order)(core.as_key(key, "gibbs"), state)
        kernels = [names for names, update in updates.items() if not isinstance(update, Exact)]
        return state, {_label(names): infos[_label(names)] for names in kernels}

    return core.Algorithm(init, step)


def refresh(begin: Callable[..., Any], changed: Any, arguments: tuple[Any, ...], state: Any) -> Any:
    """A kernel's state with what `begin(changed, *arguments)` computes of `changed` computed anew, all else kept."""
    program, shape = jax.make_jaxpr(begin, return_shape=True)(changed, *arguments)
    leaves = jax.tree.leaves((changed, *arguments))
    stale = _depend(program.jaxpr, len(jax.tree.leaves(changed)))
    if not any(stale):
        return state
    fresh = jax.extend.core.jaxpr_as_fun(program)(*leaves)
    core.check_same_structure("gibbs", "the state that a block's kernel returns", state, shape)
    merged = [new if is_stale else old for is_stale, new, old in zip(stale, fresh, jax.tree.leaves(state), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(shape), merged)


def _depend(program: Any, count: int) -> list[bool]:
    """Which results of a jaxpr are computed of its first `count` arguments."""
    reached = set(program.invars[:count])

    def is_reached(variable: Any) -> bool:
        return not isinstance(variable, jax.extend.core.Literal) and variable in reached

    for equation in program.eqns:
        if any(map(is_reached, equation.invars)):
            reached.update(equation.outvars)
    return [is_reached(variable) for variable in program.outvars]


def entries(position: Any) -> dict[str, Any]:
    """The named entries of a dict, a NamedTuple or a dataclass."""
    if isinstance(position, dict):
        return dict(position)
    if hasattr(position, "_asdict"):
        return dict(position._asdict())
    if dataclasses.is_dataclass(position):
        return {field.name: getattr(position, field.name) for field in dataclasses.fields(position)}
    todo = "Give each block of it a name"
    raise core.bad_type("gibbs", "position", position, "a dict, a NamedTuple or a dataclass", todo)


def _replace(position: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(position, dict):
        return type(position)({**position, **values})
    return position._replace(**values) if hasattr(position, "_replace") else dataclasses.replace(position, **values)


def read(position: Any, names: Names) -> Any:
    """The values of a block: an entry for one name, a dict for several."""
    named = entries(position)
    return named[names] if isinstance(names, str) else {name: named[name] for name in names}


def write(position: Any, names: Names, value: Any) -> Any:
    """The position with other values of a block."""
    return _replace(position, {names: value} if isinstance(names, str) else value)


def rest(position: Any, names: Names) -> dict[str, Any]:
    """The entries that are not of a block, by name."""
    return {name: value for name, value in entries(position).items() if name not in as_tuple(names)}


def as_tuple(names: Names) -> tuple[str, ...]:
    """The names of a block."""
    return (names,) if isinstance(names, str) else tuple(names)


def _label(names: Names) -> str:
    return "+".join(as_tuple(names))


def _checked(log_density: Any, blocks: Any, order: str) -> dict[Names, Update]:
    if not callable(log_density):
        todo = "For a conditioned model pass posterior.log_density"
        raise core.bad_type("gibbs", "log_density", log_density, "a function", todo)
    if not isinstance(blocks, Mapping) or not blocks:
        raise core.bad_type("gibbs", "blocks", blocks, "a dict from names to kernels, of at least one block")
    if order not in ("systematic", "random"):
        raise core.bad_value("gibbs", "order", core.describe(order), "'systematic' or 'random'")
    seen: set[str] = set()
    for names, update in blocks.items():
        if not isinstance(names, str) and not (
            isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)
        ):
            raise core.bad_type("gibbs", "blocks", f"with the key {names!r}", "names, or tuples of names, as keys")
        if not isinstance(update, Exact) and not callable(update):
            todo = "An example is functools.partial(mcmc.nuts, step_size=0.3)"
            raise core.bad_type("gibbs", f"block {names!r}", update, "a function of a log density, or an Exact", todo)
        for name in as_tuple(names):
            if name in seen:
                todo = "To move it twice, cycle through two such algorithms"
                raise core.bad_value("gibbs", "blocks", f"with {name!r} in two places", "each name in one block", todo)
            seen.add(name)
    return dict(blocks)


def _check_names(position: Any, updates: dict[Names, Update]) -> None:
    named = {name for names in updates for name in as_tuple(names)}
    present = set(entries(position))
    if missing := sorted(present - named):
        todo = f"Add a block for {missing[0]!r}, or make it a constant of log_density"
        raise core.bad_value("gibbs", "blocks", f"without {missing[0]!r}", f"the entries {sorted(present)}", todo)
    if unknown := sorted(named - present):
        raise core.bad_value("gibbs", "blocks", f"with unknown name {unknown[0]!r}", f"the entries {sorted(present)}")
