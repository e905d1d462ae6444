"""What can be sampled, seen in one way: a pytree with `log_density`, and what is kept of each draw."""

from __future__ import annotations

import functools
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


WARMUP = 1000  # steps of tuning, where nothing better is known


@dataclass(frozen=True)
class WithWarmup:
    """Builds a kernel that tunes itself for `warmup` steps and is frozen afterwards. Hashable.

    Attributes:
      kernel: a factory such as `mcmc.nuts`.
      warmup: steps that tune.
      kernel_options: of the kernel, by name.
      options: of the warm-up, by name; what it does not know itself goes to the kernel.
      shared: what its state is known to be, a `core.Shared`.
    """

    shared: ClassVar[bool] = True
    kernel: Callable[..., core.Algorithm]
    warmup: int
    kernel_options: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, target: Any, axis_name: Any) -> Any:
        """The warm-up of a target's kernel, an algorithm."""
        from jaxprob.inference import mcmc

        kernel = functools.partial(self.kernel, **dict(self.kernel_options))
        warm = mcmc.warmup(kernel, target.log_density, num_steps=self.warmup, axis_name=axis_name, **dict(self.options))
        return warm

    def interruptible(self, target: Any) -> bool:
        """Whether the kernel is made of moves."""
        options = {"step_size": 1.0, "inverse_mass_matrix": 1.0, **dict(self.kernel_options)}
        return isinstance(self.kernel(target.log_density, **options), core.Interruptible)

    @property
    def aims(self) -> dict[str, Any]:
        """What a diagnosis should hold the run against."""
        known = ("target_acceptance", "max_tree_depth")
        return {name: value for name, value in self.kernel_options + self.options if name in known}


def with_warmup(factory: Callable[..., Any], warmup: int | None, size: int, chains: int) -> WithWarmup:
    """The builder for `mcmc.nuts`, `partial(mcmc.nuts, max_tree_depth=8)`, `partial(mcmc.warmup, mcmc.nuts, ...)`.

    A partial is taken apart: two that are written alike are the same program.

    Args:
      factory: what makes the kernel.
      warmup: steps that tune; None for what suits the number of chains.
      size: scalars in a position.
      chains: how many learn together.
    """
    from jaxprob.inference import mcmc

    kernel, arguments, kernel_options = _apart(factory)
    options: dict[str, Any] = {}
    if kernel is mcmc.warmup:
        options = kernel_options
        kernel = arguments[0] if arguments else options.pop("kernel", mcmc.nuts)
        kernel, arguments, kernel_options = _apart(kernel)
    estimate = options.get("estimate", "fisher")
    if warmup is None:
        warmup = mcmc.pick_num_steps(chains) if estimate == "fisher" and kernel in (mcmc.nuts, mcmc.hmc) else WARMUP
    if options.get("metric", "auto") == "auto":
        options["metric"] = mcmc.pick_metric(size, chains, warmup, estimate)
    built = WithWarmup(kernel, warmup, tuple(sorted(kernel_options.items())), tuple(sorted(options.items())))
    if arguments or "num_steps" in options:
        got = f"{describe_algorithm(built)} with {len(arguments)} arguments by place"
        todo = "Set the length of the warm-up by sample(..., warmup=...)"
        raise core.bad_value("sample", "algorithm", got, "a factory with its options by name", todo)
    tuned = sorted({"step_size", "inverse_mass_matrix"} & {*kernel_options, *options})
    if tuned:
        todo = "Begin elsewhere with partial(mcmc.warmup, mcmc.nuts, initial_step_size=...), or pass a ready algorithm"
        got = f"{describe_algorithm(built)}, which fixes {' and '.join(tuned)}"
        raise core.bad_value("sample", "algorithm", got, "a factory whose step size and metric are tuned", todo)
    try:
        hash(built)
    except TypeError:
        got, todo = describe_algorithm(built), "For arrays, write a function of the log density that calls the factory"
        raise core.bad_value("sample", "algorithm", got, "options that are numbers or strings", todo) from None
    return built


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
    """A short name for messages and `meta.json`: "nuts", "nuts(max_tree_depth=8)", "algorithm of blackjax"."""
    if isinstance(algorithm, WithWarmup):
        options = ", ".join(
            f"{name}={core.describe(value)}" for name, value in algorithm.kernel_options + algorithm.options
        )
        return describe_algorithm(algorithm.kernel) + (f"({options})" if options else "")
    if isinstance(algorithm, AsGiven):
        return describe_algorithm(algorithm.algorithm)
    if hasattr(algorithm, "step") and hasattr(algorithm, "init"):
        return f"an algorithm of {getattr(algorithm.step, '__module__', 'unknown').split('.')[0]}"
    return getattr(algorithm, "__name__", type(algorithm).__name__)
