"""One optimiser of several, told apart by the paths of leaves.

Source: label trees are optax's (`optax.partition`); smaller rates without decay for the state matrices of state-space
layers are those of Gu, Goel and Ré (2022), "Efficiently modeling long sequences with structured state spaces".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import optax

from jaxprob import core

Optimizer: TypeAlias = optax.GradientTransformation | None


def by_path(rules: Mapping[str, Optimizer], *, default: Optimizer) -> optax.GradientTransformation:
    """An optimiser that moves each leaf by the first rule whose pattern its path meets, and the others by `default`.

    Args:
      rules: optimisers by glob pattern of whole leaf paths, with dots as `core.named_leaves` spells them: `"*.bias"`,
        `"params.encoder.*"`. `*` stands for any characters, dots included; `?` for one; `[ab]` for one of them. Rules
        are tried in their order and the first that meets a leaf takes it. None freezes leaves: they do not move, and
        take no memory in the optimiser.
      default: the optimiser of leaves that no pattern meets, or None to freeze them.

    Returns:
      an optax optimiser. Its `init` raises a `ValueError` if a pattern takes no leaf.

    Raises:
      TypeError: if a rule is neither an optimiser nor None.

    State matrices want a smaller rate and no weight decay: in the sequence cores of this package they are the leaves
    whose names begin with `decay_`.

    >>> import jax.numpy as jnp
    >>> params = {"core": {"decay_log_rate": jnp.ones(2), "kernel": jnp.ones(2)}, "bias": jnp.ones(2)}
    >>> optimizer = by_path({"*decay_*": optax.adam(1e-3), "bias": None}, default=optax.adamw(1e-2))
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(params, state, params)
    >>> [f"{leaf[0]:.3f}" for leaf in jax.tree.leaves(updates)]
    ['0.000', '-0.001', '-0.010']
    """
    if not isinstance(rules, Mapping):
        raise core.bad_type("by_path", "rules", rules, "a dict of optimisers by pattern")
    rules = dict(rules)
    for name, rule in [*((f"rule {pattern!r}", rule) for pattern, rule in rules.items()), ("default", default)]:
        if rule is not None and not isinstance(rule, optax.GradientTransformation):
            raise core.bad_type("by_path", name, rule, "an optax optimiser, or None to freeze")
    # Labels are places of rules; those of patterns may be any text, `default` too.
    optimizers = dict(enumerate(optax.set_to_zero() if r is None else r for r in (*rules.values(), default)))

    def labels(params: Any) -> Any:
        names = [name for name, _ in core.named_leaves(params)]
        places = core.match_patterns("by_path", "pattern {}", list(rules), names)
        return jax.tree.unflatten(jax.tree.structure(params), places)

    return optax.partition(optimizers, labels)
