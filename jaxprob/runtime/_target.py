"""What can be sampled, seen in one way: a pytree with `log_density`, and what is kept of each draw."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from jaxprob import core


@core.pytree
class Function:
    """A bare log density as a target: a pytree without leaves."""

    function: Callable[[Any], Any] = core.static()

    def log_density(self, position: Any) -> Any:
        """The function itself."""
        return self.function(position)


def as_target(posterior: Any, function: str = "sample") -> Any:
    """The target in `posterior`: an object with a method `log_density`, or a function `position -> scalar`."""
    if hasattr(posterior, "log_density"):
        if len(jax.tree.leaves(posterior)) == 1 and jax.tree.leaves(posterior)[0] is posterior:
            return Function(posterior.log_density)  # not a pytree: its data become constants
        return posterior
    if hasattr(posterior, "condition"):
        raise core.bad_type(
            function,
            "posterior",
            "a program whose data are not given yet",
            "a posterior",
            "Give it data first: program.condition(y=...)",
        )
    if callable(posterior):
        return Function(posterior)
    raise core.bad_type(
        function,
        "posterior",
        core.describe(posterior),
        "a posterior (program.condition(...)) or a log density function",
    )


@dataclass(frozen=True)
class Keep:
    """What is kept of one draw: the named quantities of a model, or the leaves of a position. Hashable.

    Attributes:
      names: the names to keep; None for all.
      constrained: whether the target maps positions to constrained values.
    """

    names: tuple[str, ...] | None
    constrained: bool

    def __call__(self, target: Any, position: Any) -> Any:
        """The quantities of one draw."""
        values = target.constrain(position) if self.constrained else position
        if self.names is None:
            return values
        return {name: values[name] for name in self.names}


def keeping(target: Any, keep: Any, position: Any, function: str = "sample") -> Keep:
    """Checks `keep` against what a draw of the target is.

    Args:
      target: the target.
      keep: None for everything, or names.
      position: a position of the target, or its shape.

    Raises:
      ValueError: for a name that does not exist.
    """
    everything = Keep(None, hasattr(target, "constrain"))
    if keep is None:
        return everything
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    values = jax.eval_shape(everything, target, position)
    known = list(values) if isinstance(values, dict) else []
    for name in names:
        if name not in known:
            raise core.bad_value(
                function, "keep", f"{name!r}", f"names among {known}" if known else "None for a position without names"
            )
    return Keep(names, everything.constrained)


# What the kernel that goes on in narrow places needs: with more halvings all wait for a few chains in the deepest, and
# larger steps go further (`benchmarks/mcmc.py`, funnel and eight schools).
NARROW_HALVINGS, NARROW_ACCEPTANCE = 5, 0.7
WARMUP = 1000  # steps of tuning, where nothing better is known


@dataclass(frozen=True)
class WithWarmup:
    """Builds an algorithm that tunes itself for `warmup` steps and stands still afterwards. Hashable.

    Attributes:
      tuning: a factory of a warm-up: `mcmc.warmup`, `mcmc.chees`, or any with arguments `log_density`, `num_steps` and
        `axis_name`, and `kernel` if it takes one, that makes an algorithm whose state is a `core.Shared`.
      kernel: a factory such as `mcmc.nuts`; None where the warm-up has its own.
      warmup: steps that tune.
      kernel_options: of the kernel, by name.
      options: of the warm-up, by name; what `mcmc.warmup` does not know itself goes to the kernel.
      narrow: the kernel that goes on after the warm-up if that found narrow places, a factory and its options by name;
        None for the same kernel.
      shared: what its state is known to be, a `core.Shared`.
    """

    shared: ClassVar[bool] = True
    tuning: Callable[..., core.Algorithm]
    kernel: Callable[..., core.Algorithm] | None
    warmup: int
    kernel_options: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    narrow: tuple[Callable[..., core.Algorithm], tuple[tuple[str, Any], ...]] | None = None

    def __call__(self, target: Any, axis_name: Any) -> Any:
        """The warm-up for a target, an algorithm."""
        return self.tuning(**self.arguments(target.log_density, axis_name))

    def arguments(self, log_density: Any, axis_name: Any) -> dict[str, Any]:
        """What the factory of the warm-up is called with."""
        given = dict(self.options) | {"num_steps": self.warmup, "axis_name": axis_name}
        if self.kernel is not None:
            given["kernel"] = functools.partial(self.kernel, **dict(self.kernel_options))
        # Whoever splits the density into prior and likelihood has given it already.
        return given if "log_likelihood" in given else given | {"log_density": log_density}

    def interruptible(self, target: Any) -> bool:
        """Whether the kernel is made of moves."""
        from jaxprob.inference import mcmc

        if self.tuning is not mcmc.warmup or self.kernel is None:
            return False
        options = {"step_size": 1.0, "inverse_mass_matrix": 1.0, **dict(self.kernel_options)}
        return isinstance(self.kernel(target.log_density, **options), core.Interruptible)

    def for_narrow_places(self) -> WithWarmup | None:
        """What goes on after a warm-up that found narrow places, from its state; None where that is no other kernel."""
        if self.narrow is None:
            return None
        kernel, options = self.narrow
        return dataclasses.replace(self, kernel=kernel, kernel_options=options, narrow=None)

    @property
    def narrow_name(self) -> str | None:
        """What goes on in narrow places, by name."""
        return None if self.narrow is None else _called(*self.narrow)

    @property
    def aims(self) -> dict[str, Any]:
        """What a diagnosis should hold the run against."""
        takes = {**_parameters(self.kernel), **_parameters(self.tuning)}
        given = {name: x.default for name, x in takes.items()} | dict(self.kernel_options) | dict(self.options)
        known = ("target_acceptance", "max_tree_depth")
        return {name: given[name] for name in known if isinstance(given.get(name), (int, float))}


def with_warmup(factory: Callable[..., Any] | None, warmup: int | None, size: int, chains: int) -> WithWarmup:
    """The builder for what makes a kernel, tuned by `mcmc.warmup`, or for what makes a warm-up, with its options.

    `mcmc.nuts`, `partial(mcmc.nuts, max_tree_depth=8)`, `partial(mcmc.warmup, mcmc.nuts, target_acceptance=0.9)`,
    `mcmc.chees`: a warm-up is what takes `num_steps` and `axis_name`. A partial is taken apart: two that are written
    alike are the same program.

    Args:
      factory: what makes the kernel or the warm-up. None, and `mcmc.warmup` without a kernel, is NUTS, and WALNUTS
        after a warm-up that found narrow places.
      warmup: steps that tune; None for what suits the number of chains, or the default of another warm-up.
      size: scalars in a position.
      chains: how many learn together.
    """
    from jaxprob.inference import mcmc

    tuning, arguments, options = _apart(mcmc.warmup if factory is None else factory)
    kernel: Any = None
    kernel_options: dict[str, Any] = {}
    takes = _parameters(tuning)
    if not {"num_steps", "axis_name"} <= takes.keys():
        tuning, arguments, options, takes = mcmc.warmup, (factory,), {}, _parameters(mcmc.warmup)
    narrow: Any = None
    if tuning is mcmc.warmup and not arguments and "kernel" not in options:
        arguments, narrow = (mcmc.nuts,), (mcmc.walnuts, (("max_halvings", NARROW_HALVINGS),))
        if "target_acceptance" not in options:
            options.setdefault("narrow_acceptance", NARROW_ACCEPTANCE)
    if "kernel" in takes:
        kernel, *rest = arguments or (options.pop("kernel", None),)
        kernel, arguments, kernel_options = _apart(kernel)
        arguments = (*rest, *arguments)
    if tuning is mcmc.warmup:
        estimate = options.get("estimate", "fisher")
        if warmup is None:
            few = estimate == "fisher" and kernel in (mcmc.nuts, mcmc.walnuts, mcmc.hmc)
            warmup = mcmc.pick_num_steps(chains) if few else WARMUP
        if options.get("metric", "auto") == "auto":
            options["metric"] = mcmc.pick_metric(size, chains, warmup, estimate)
    if warmup is None:
        default = takes["num_steps"].default
        warmup = WARMUP if default is inspect.Parameter.empty else default
    of_kernel, of_warmup = tuple(sorted(kernel_options.items())), tuple(sorted(options.items()))
    built = WithWarmup(tuning, kernel, warmup, of_kernel, of_warmup, narrow)
    _check(built, arguments)
    return built


def _parameters(factory: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return {}


def _check(built: WithWarmup, places: tuple[Any, ...]) -> None:
    """Raises a `ValueError` unless a warm-up can be made with the options given, none of them by place."""
    from jaxprob.inference import mcmc

    def bad(said: str, expected: str, todo: str) -> ValueError:
        return core.bad_value("sample", "algorithm", describe_algorithm(built) + said, expected, todo)

    options, kernel_options = dict(built.options), dict(built.kernel_options)
    if places or {"num_steps", "axis_name"} & options.keys():
        todo = "Set the length of the warm-up by sample(..., warmup=...)"
        raise bad(f" with {len(places)} arguments by place", "a factory with its options by name", todo)
    # A tempered kernel may keep the step size it was given.
    fixed = options if built.tuning is mcmc.tempering_warmup else {**options, **kernel_options}
    tuned = sorted({"step_size", "inverse_mass_matrix"} & fixed.keys())
    if tuned:
        todo = "Begin elsewhere with partial(mcmc.warmup, mcmc.nuts, initial_step_size=...), or pass a ready algorithm"
        raise bad(f", which fixes {' and '.join(tuned)}", "a factory whose step size and metric are tuned", todo)
    try:
        inspect.signature(built.tuning).bind(**built.arguments(None, None))
        if built.kernel is not None and (takes := _parameters(built.kernel)):
            tuned_later = {"step_size", "inverse_mass_matrix"} & takes.keys()
            if built.tuning is mcmc.mclmc_warmup:
                tuned_later |= {"trajectory_length"} & takes.keys()
            inspect.signature(built.kernel).bind(None, **(dict.fromkeys(tuned_later) | kernel_options))
    except TypeError as error:
        raise bad(f" with {error}", "options that it takes", "") from None
    try:
        hash(built)
    except TypeError:
        todo = "For arrays, write a function of the log density that calls the factory"
        raise bad("", "options that are numbers or strings", todo) from None


def _apart(factory: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if isinstance(factory, functools.partial):
        return factory.func, factory.args, dict(factory.keywords)
    return factory, (), {}


@dataclass(frozen=True)
class AsGiven:
    """An algorithm that is ready to run, ours or anybody's with `init` and `step`. Hashable."""

    algorithm: Any

    def __call__(self, target: Any, axis_name: Any) -> Any:
        """The algorithm itself."""
        return self.algorithm

    def interruptible(self, target: Any) -> bool:
        """Whether the algorithm is made of moves."""
        return isinstance(self.algorithm, core.Interruptible)


def describe_algorithm(algorithm: Any) -> str:
    """A short name for messages and `meta.json`: "nuts", "nuts(max_tree_depth=8)", "chees", "algorithm of blackjax"."""
    if isinstance(algorithm, WithWarmup):
        from jaxprob.inference import mcmc

        if algorithm.tuning is mcmc.warmup:
            implied = () if algorithm.narrow is None else (("narrow_acceptance", NARROW_ACCEPTANCE),)
            options = tuple(option for option in algorithm.options if option not in implied)
            return _called(algorithm.kernel, algorithm.kernel_options + options)
        inner = () if algorithm.kernel is None else (_called(algorithm.kernel, algorithm.kernel_options),)
        return _called(algorithm.tuning, algorithm.options, *inner)
    if isinstance(algorithm, AsGiven):
        return describe_algorithm(algorithm.algorithm)
    if isinstance(algorithm, functools.partial):
        return _called(algorithm.func, tuple(sorted(algorithm.keywords.items())))
    if hasattr(algorithm, "step") and hasattr(algorithm, "init"):
        return f"an algorithm of {getattr(algorithm.step, '__module__', 'unknown').split('.')[0]}"
    return getattr(algorithm, "__name__", type(algorithm).__name__)


def _called(function: Any, options: tuple[tuple[str, Any], ...], *inner: str) -> str:
    """How a call with these options is written, by name."""
    shown = (f"{name}={_written(value)}" for name, value in options)
    inside = ", ".join((*inner, *shown))
    return describe_algorithm(function) + (f"({inside})" if inside else "")


def _written(value: Any) -> str:
    if isinstance(value, functools.partial):
        return describe_algorithm(value)
    return getattr(value, "__name__", core.describe(value))
