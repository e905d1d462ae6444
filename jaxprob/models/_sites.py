"""How a generator program is run: the messages it yields, and the loop that answers them.

A program yields `(name, distribution)` and is sent a value. What the value is (a draw, an observation, a point of
unconstrained space) is decided by the `visit` function that whoever runs the program passes in; the loop itself only
reads the messages, keeps the record of names, and reports what is wrong with them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution


class ModelError(ValueError):
    """A model raised while it was run; the model's own exception is the `__cause__`."""


class Deterministic(NamedTuple):
    """A named quantity without a density (see `deterministic`)."""

    value: Any


class Given(NamedTuple):
    """A site whose value is fixed. `distribution` scores it, or is None for an intervention."""

    value: Any
    distribution: Any


class Outcome(NamedTuple):
    """What a run of a program came to.

    Attributes:
      values: the value of every name, in the order of the program.
      deterministic: names of the deterministic quantities.
      returned: what the generator returned.
    """

    values: dict[str, Any]
    deterministic: tuple[str, ...]
    returned: Any


Visit: TypeAlias = Callable[[str, Distribution, Any], Any]
Body: TypeAlias = Generator[Any, Any, Any]


def deterministic(value: Any) -> Deterministic:
    """Marks a quantity to be recorded under a name: it appears in draws and adds no density.

    Inside a model: `rate = yield "rate", models.deterministic(exposure * jnp.exp(effect))`. The quantity appears in
    `sample`, in `constrain` and so among the draws of a run.

    Args:
      value: array or number.
    """
    return Deterministic(value)


def prefix(name: str, program: Iterable[Any]) -> Body:
    """A nested model whose sites are called `name.site`: `x = yield from models.prefix("a", other(...))`.

    Args:
      name: what is put before every name of `program`, with a dot between.
      program: a program, or any generator that yields sites, such as `models.random_net(...)`.

    Returns:
      what `program` returns.
    """
    body: Any = iter(program)
    reply = None
    while True:
        try:
            message = body.send(reply)
        except StopIteration as stop:
            return stop.value
        reply = yield (f"{name}.{message[0]}", message[1]) if is_site(message) else message


def run(program: Any, visit: Visit) -> Outcome:
    """Runs a program once.

    Args:
      program: what yields sites when iterated; `program.name` is used in messages.
      visit: `(name, distribution, given) -> value`, called at every random site in order. `given` is None, or the
        value that the program itself fixes there, which must then be returned.

    Raises:
      ModelError: if the model raises.
      TypeError: if it yields something that is not a site.
      ValueError: if two sites have one name, or a fixed value does not have the shape of its site.
    """
    values: dict[str, Any] = {}
    recorded: list[str] = []
    body, reply = iter(program), None
    while True:
        try:
            message = body.send(reply)
        except StopIteration as stop:
            return Outcome(values, tuple(recorded), stop.value)
        except Exception as error:
            raise _model_error(program.name, values, error) from error
        name, site = _read(program.name, message, values)
        if isinstance(site, Deterministic):
            recorded.append(name)
            reply = jnp.asarray(site.value)
        elif not isinstance(site, Given):
            reply = visit(name, site, None)
        elif site.distribution is None:
            reply = site.value
        else:
            check_shape(program.name, name, site.value, site.distribution)
            reply = visit(name, site.distribution, site.value)
        values[name] = reply


def check_shape(function: str, name: str, value: Any, distribution: Distribution) -> None:
    """Raises a `ValueError` if `value` does not have exactly the shape of its site."""
    if jnp.shape(value) != distribution.shape:
        todo = "Give the parameters of the distribution that shape (jnp.full, jnp.broadcast_to), or correct the value"
        raise core.bad_value(
            function,
            name,
            f"of shape {jnp.shape(value)}",
            f"the shape {distribution.shape} of its site, {kind(distribution)}",
            f"{todo}, or use jax.vmap for several at once",
        )


def look_up(function: str, argument: str, values: dict[str, Any], name: str, distribution: Distribution) -> Any:
    """The value of a site in a dict of values, or the error that it is missing or has another shape."""
    if name not in values:
        raise core.bad_value(function, argument, f"without {name!r}", "a value for every random quantity")
    check_shape(function, f"{argument}[{name!r}]", values[name], distribution)
    return jnp.asarray(values[name])


def check_known(function: str, argument: str, values: dict[str, Any], known: Iterable[str]) -> None:
    """Raises a `ValueError` if there is a value for a name that does not exist."""
    if unknown := [name for name in values if name not in known]:
        raise core.bad_value(function, argument, f"with unknown name {unknown[0]!r}", f"names among {list(known)}")


def total(terms: Iterable[Any]) -> jax.Array:
    """The sum of scalars, in the highest of their dtypes."""
    terms = list(terms)
    dtype = core.result_dtype(terms)
    return functools.reduce(jnp.add, [jnp.asarray(term).astype(dtype) for term in terms], jnp.zeros((), dtype))


def kind(distribution: Distribution) -> str:
    """The name of the family of a distribution."""
    return type(distribution).__name__


def site_key(key: core.Key, name: str) -> core.Key:
    """The key of one site: `key` with 32 bits of the SHA-256 of the name folded in.

    It depends on the name and on nothing else, so that adding a site leaves the draws of all others as they are. Of a
    hundred names two share a key with probability 1e-6.
    """
    return core.fold(key, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))


def draw(key: core.Key, name: str, distribution: Distribution, dtype: Any) -> jax.Array:
    """A draw of a site in its dtype (see `site_dtype`).

    Raises:
      ValueError: if the distribution cannot be drawn from, as an improper one cannot.
    """
    try:
        value = distribution.sample(site_key(key, name))
    except (TypeError, NotImplementedError) as error:
        got = f"{kind(distribution)}, which fails with: {_first_line(error)}"
        todo = f"Set {name!r} with substitute, or choose another distribution"
        raise core.bad_value("sample", f"site {name!r}", got, "a distribution that can be drawn from", todo) from error
    return value if distribution.is_discrete else value.astype(site_dtype(distribution, dtype))


def working_dtype(*trees: Any) -> Any:
    """The dtype of quantities whose distribution has only Python numbers for parameters.

    It is the highest among the floating arrays of a program (its arguments and data), at least float32, so that a
    float32 model stays one under x64.
    """
    floats = [leaf for leaf in jax.tree.leaves(trees) if _is_float(leaf) and not _is_weak(leaf)]
    return core.accumulator_dtype(core.result_dtype(floats))


def site_dtype(distribution: Distribution, default: Any) -> Any:
    """The dtype of a continuous site: that of its distribution's parameters, or `default` where they have none."""
    floats = [leaf for leaf in jax.tree.leaves(distribution) if _is_float(leaf) and not _is_weak(leaf)]
    return core.result_dtype(floats) if floats else default


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _is_weak(leaf: Any) -> bool:
    return isinstance(leaf, float) or getattr(leaf, "weak_type", False)


def is_site(message: Any) -> bool:
    """Whether a message has the form of a site: a name and something else."""
    return isinstance(message, tuple) and len(message) == 2 and isinstance(message[0], str)


def _read(model: str, message: Any, seen: dict[str, Any]) -> tuple[str, Any]:
    """The name and the quantity of a message, or the error that says what is wrong with it."""
    example = 'x = yield "x", Normal(0.0, 1.0)'
    if not is_site(message):
        todo = f"Write {example}"
        if isinstance(message, Iterable) and not isinstance(message, (tuple, list, str)):
            todo = "Use `yield from` for a nested model"
        raise core.bad_type(model, _after("what is yielded", seen), message, "a name and a distribution", todo)
    name, site = message
    if not name:
        raise core.bad_value(model, _after("the name yielded", seen), "empty", "a name", f"Write {example}")
    if name in seen:
        raise core.bad_value(
            model,
            f"name {name!r}",
            "yielded twice",
            "a name of its own for every quantity",
            "Rename one, or wrap a nested model in models.prefix(name, model)",
        )
    if not isinstance(site, (Distribution, Deterministic, Given)):
        raise core.bad_type(
            model,
            f"what is yielded as {name!r}",
            site,
            "a distribution of jaxprob.distributions",
            "Use models.deterministic(value) to record a quantity",
        )
    return name, site


def _after(what: str, seen: dict[str, Any]) -> str:
    return f"{what} after {list(seen)[-1]!r}" if seen else f"{what} first"


def _model_error(model: str, seen: dict[str, Any], error: Exception) -> ModelError:
    text = _first_line(error)
    return ModelError(
        core.message(
            model,
            _after("the model", seen) if seen else "the model before its first site",
            f"raising {type(error).__name__}" + (f" ({text})" if text else ""),
            "to run to its end",
            "The exception above is the model's own",
        )
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
