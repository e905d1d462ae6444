"""What can be sampled, seen in one way: a pytree with `log_density`, and what is kept of each draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class WithWarmup:
    """Builds a kernel that tunes itself for `warmup` steps and is frozen afterwards. Hashable."""

    factory: Callable[..., core.Algorithm]
    warmup: int
    options: tuple[tuple[str, Any], ...] = ()

    def __call__(self, target: Any, axis_name: Any) -> core.Algorithm:
        """The algorithm for a target."""
        from jaxprob.inference import mcmc

        options = dict(self.options)
        warm = mcmc.warmup(self.factory, target.log_density, num_steps=self.warmup, axis_name=axis_name, **options)
        return core.Algorithm(warm.init, warm.step)


@dataclass(frozen=True)
class AsGiven:
    """An algorithm that is ready to run, ours or anybody's with `init` and `step`. Hashable."""

    algorithm: Any

    def __call__(self, target: Any, axis_name: Any) -> Any:
        """The algorithm itself."""
        return self.algorithm


def describe_algorithm(algorithm: Any) -> str:
    """A short name for messages and `meta.json`: "nuts", "nuts(max_tree_depth=8)", "algorithm of blackjax"."""
    keywords = getattr(algorithm, "keywords", None)
    if keywords is not None:
        inside = ", ".join(f"{name}={core.describe(value)}" for name, value in sorted(keywords.items()))
        return f"{describe_algorithm(algorithm.func)}({inside})"
    if hasattr(algorithm, "step") and hasattr(algorithm, "init"):
        return f"an algorithm of {getattr(algorithm.step, '__module__', 'unknown').split('.')[0]}"
    return getattr(algorithm, "__name__", type(algorithm).__name__)
