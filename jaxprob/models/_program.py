"""Joint models: a generator that yields named distributions, and what follows from one without data.

Source: the effect handlers (seed, trace, condition, substitute, replay) of Pyro and NumPyro, here as methods of a
value: a program is a function with its arguments and is run from the outside, one site at a time.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution
from jaxprob.models import _arguments, _draws, _sites, _survey

if TYPE_CHECKING:
    from jaxprob.models._posterior import Posterior


class Joint:
    """A generative model: called with its arguments it gives a `Program`.

    Attributes:
      function: the generator function.
      name: its name.
      signature: its signature.
    """

    def __init__(self, function: Callable[..., Iterator[Any]]) -> None:
        if not inspect.isgeneratorfunction(function):
            raise core.bad_type(
                "joint",
                "function",
                f"{getattr(function, '__name__', type(function).__name__)}, which never yields",
                "a generator function",
                'Write x = yield "x", Normal(0.0, 1.0) for each quantity',
            )
        functools.update_wrapper(self, function)
        self.function = function
        self.name = function.__name__
        self.signature = inspect.signature(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Program:
        """The program for these arguments.

        Raises:
          TypeError: if the arguments do not fit the signature, or one is neither an array nor hashable.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            todo = f"Call it as {self.name}{self.signature}"
            raise core.bad_type(self.name, "the call", f"{error}", "all arguments, each once", todo) from None
        bound.apply_defaults()
        arguments, structure = _arguments.split(self.name, dict(bound.arguments))
        return Program(arguments, {}, {}, self, structure)

    # Two models of one function are one model: a copy must not make compiled code compile again.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Joint) and self.function is other.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        return f"<joint model {self.name}{self.signature}>"


def joint(function: Callable[..., Iterator[Any]]) -> Joint:
    """Makes a joint model of a generator function that yields `name, distribution` and is sent the value.

    Called with arguments it gives a `Program`. Arrays and Python floats among the arguments are data (leaves of the
    program); integers, booleans, strings, functions and None belong to its structure, and can be sizes. Data should
    come in as arguments: an array that the function closes over is compiled in as a constant.

    Arrays stand for plates: a site sums the log density over the whole shape of its distribution. Inside the function
    `yield "name", models.deterministic(value)` records a quantity, and `yield from other(...)` runs another model.

    Args:
      function: a generator function; it may return a value (see `Program.returned`).

    Raises:
      TypeError: if `function` is not a generator function.

    >>> from jaxprob.distributions import Normal
    >>> @joint
    ... def walk(scale):
    ...     x = yield "x", Normal(0.0, scale)
    ...     yield "y", Normal(x, scale)
    >>> print(walk(2.0).names)
    ('x', 'y')
    """
    return Joint(function)


@core.pytree
class Program:
    """A joint model with its arguments: simulates, scores, and takes data.

    It is a pytree. Its leaves are the data among the arguments and the values that were fixed; the function and the
    rest of the arguments are its structure. Iterating over it yields its sites (this is what `yield from` does).

    Attributes:
      arguments: the arguments by name, with None for what is structure.
      fixed: values set by `substitute`; their sites count in densities.
      done: values set by `do`; their sites do not count.
      model: the `Joint` it was made by.
      structure: the arguments that are not data.
    """

    arguments: dict[str, Any]
    fixed: dict[str, Any]
    done: dict[str, Any]
    model: Joint = core.static()
    structure: _arguments.Structure = core.static()

    @property
    def name(self) -> str:
        """Name of the generator function."""
        return self.model.name

    @property
    def sites(self) -> dict[str, _survey.Site]:
        """What every named quantity is, in order; found by tracing, nothing is computed."""
        return _survey.survey(self, {})

    @property
    def names(self) -> tuple[str, ...]:
        """The names in order."""
        return tuple(self.sites)

    def sample(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> dict[str, jax.Array]:
        """Draws every quantity, in the order of the program.

        The key of a site is `key` with its name folded in, so that another site changes no other's draw.

        Args:
          key: random key.
          shape: leading shape of independent draws.

        Returns:
          name to array (*shape, ...), deterministic and fixed quantities included.

        Raises:
          ValueError: if a site cannot be drawn from, as an improper one cannot.
        """
        key = core.as_key(key, "sample")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape:
            return simulate(self, key, {})
        return _draws.over_draws(simulate, self, key, {}, shape)

    def log_prob(self, values: dict[str, Any]) -> jax.Array:
        """Log density of the values of all random quantities: the sum of `log_probs`."""
        return _sites.total(self.log_probs(values).values())

    def log_probs(self, values: dict[str, Any]) -> dict[str, jax.Array]:
        """Log density of each random site given the values before it, summed over the shape of the site.

        Args:
          values: name to array, of exactly the shapes of the sites (map with `jax.vmap` for several). Deterministic
            and fixed quantities may be among them and are not looked at.

        Returns:
          name to scalar, in the order of the program.

        Raises:
          ValueError: for a name that is missing or unknown, or a wrong shape.
        """
        log_probs: dict[str, jax.Array] = {}

        def visit(name: str, distribution: Distribution, given: Any) -> Any:
            value = given if given is not None else _sites.look_up("log_prob", "values", values, name, distribution)
            log_probs[name] = jnp.sum(distribution.log_prob(value))
            return value

        outcome = _sites.run(self, visit)
        _sites.check_known("log_prob", "values", values, list(outcome.values))
        return log_probs

    def returned(self, values: dict[str, Any]) -> Any:
        """What the generator returns at these values of its random quantities (map with `jax.vmap` over draws)."""

        def visit(name: str, distribution: Distribution, given: Any) -> Any:
            return given if given is not None else _sites.look_up("returned", "values", values, name, distribution)

        return _sites.run(self, visit).returned

    def predict(self, key: core.Key, draws: dict[str, Any]) -> dict[str, jax.Array]:
        """Draws every quantity that `draws` lacks, given those it has, once for each draw.

        With other arguments than the draws were made with this predicts new data: `model(new).predict(key, draws)`.

        Args:
          key: random key.
          draws: name to array (*lead, ...) with any leading shape, the same for all; names that are deterministic
            here are computed anew.

        Returns:
          name to array (*lead, ...), without those that `substitute` or `do` has fixed.
        """
        key = core.as_key(key, "predict")
        sites = self.sites
        _sites.check_known("predict", "draws", draws, list(sites))
        given = {name: draws[name] for name, site in sites.items() if name in draws and site.role == "latent"}
        lead = _draws.leading_shape("predict", given, sites)
        size = sum(site.size for site in sites.values())
        values = _draws.over_draws(simulate, self, key, given, lead, size)
        wanted = [
            name for name, site in sites.items() if name not in given and site.role in ("latent", "deterministic")
        ]
        return {name: values[name] for name in wanted}

    def condition(self, *, marginalize: str | tuple[str, ...] = (), **data: Any) -> Posterior:
        """The posterior of the other quantities given data for these.

        Args:
          marginalize: names of discrete latent sites to be summed out exactly. For a site of shape (n,) the sum is
            made for each element alone, so that whatever depends on it must do so elementwise: the log density of
            element i may depend on element i only, and its shape begins with (n,).
          **data: observed values by name, of exactly the shapes of their sites. Names with a dot go in as `**{...}`.

        Raises:
          ValueError: for an unknown name, a wrong shape, missing values (NaN), values outside the support, or a
            site that cannot be summed out.
        """
        from jaxprob.models import _posterior

        marginalize = (marginalize,) if isinstance(marginalize, str) else tuple(marginalize)
        return _posterior.condition(self, data, marginalize)

    def substitute(self, **values: Any) -> Program:
        """The program with these sites fixed to values, which count in its density.

        Raises:
          ValueError: for an unknown name, a wrong shape, or a value outside the support.
        """
        values = check_data("substitute", self, values)
        return Program(self.arguments, {**self.fixed, **values}, self.done, self.model, self.structure)

    def do(self, **values: Any) -> Program:
        """The program with these quantities set from outside, whatever precedes them: an intervention.

        They no longer have a density; what follows depends on the new values.

        Raises:
          ValueError: for an unknown name or a wrong shape.
        """
        sites = self.sites
        arrays = {}
        for name, value in values.items():
            check_name("do", self, name, sites, ("latent", "deterministic"))
            arrays[name] = _survey.as_array("do", name, value)
            if arrays[name].shape != sites[name].shape:
                shape = f"of shape {arrays[name].shape}"
                raise core.bad_value("do", name, shape, f"the shape {sites[name].shape} of the quantity")
            if sites[name].dtype != arrays[name].dtype and not jnp.issubdtype(arrays[name].dtype, jnp.floating):
                arrays[name] = arrays[name].astype(sites[name].dtype)
        return Program(self.arguments, self.fixed, {**self.done, **arrays}, self.model, self.structure)

    def __iter__(self) -> _sites.Body:
        arguments: Any = _arguments.join(self.arguments, self.structure)
        bound = inspect.BoundArguments(self.model.signature, arguments)
        body: Any = self.model.function(*bound.args, **bound.kwargs)
        reply = None
        while True:
            try:
                message = body.send(reply)
            except StopIteration as stop:
                return stop.value
            name, site = message if _sites.is_site(message) else ("", None)
            if name in self.done:
                message = name, _sites.Given(self.done[name], None)
            elif name in self.fixed:
                message = name, _sites.Given(self.fixed[name], site)
            reply = yield message

    def __repr__(self) -> str:
        parts = [f"arguments={list(self.arguments)}"]
        parts += [f"{what}={list(names)}" for what, names in (("fixed", self.fixed), ("done", self.done)) if names]
        return f"Program({self.name}, {', '.join(parts)})"


def check_data(function: str, program: Program, data: dict[str, Any]) -> dict[str, jax.Array]:
    """Data as arrays of the right kind, once they are found to fit the sites of a program.

    Raises:
      ValueError: for an unknown or unsuitable name, a wrong shape, or values outside a support.
    """
    arrays = {name: _survey.as_array(function, name, value) for name, value in data.items()}
    sites = _survey.survey(program, arrays, function)
    for name in data:
        check_name(function, program, name, sites, ("observed",))
    return {name: array.astype(sites[name].dtype) for name, array in arrays.items()}


def check_name(
    function: str, program: Program, name: str, sites: dict[str, _survey.Site], roles: tuple[str, ...]
) -> None:
    """Raises a `ValueError` unless `name` is a site in one of these roles."""
    if name not in sites:
        names = [known for known, site in sites.items() if site.role in (*roles, "latent")]
        raise core.bad_value(function, name, f"no name in {program.name}", f"one of {names}")
    role = sites[name].role
    if role not in roles:
        state = {"fixed": "fixed already", "done": "set by do already"}.get(role, role)
        todo = "Use do to set it" if role == "deterministic" else ""
        raise core.bad_value(function, name, f"{state} in {program.name}", "a random quantity without a value", todo)


def simulate(program: Program, key: core.Key, values: dict[str, Any]) -> dict[str, jax.Array]:
    """Every value of one run: those given, and a draw of each of the others."""
    dtype = _sites.working_dtype(program, values)

    def visit(name: str, distribution: Distribution, given: Any) -> Any:
        if given is not None:
            return given
        return values[name] if name in values else _sites.draw(key, name, distribution, dtype)

    return _sites.run(program, visit).values
