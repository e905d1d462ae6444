"""Which discrete sites are summed out together, and whether they can be.

Which sites depend on a discrete one is read off the traced program; that the dependence is elementwise is checked with
numbers. Both happen once, when data are given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models import _scoring
from jaxprob.models._groups import Group, log_joint
from jaxprob.models._survey import Site

if TYPE_CHECKING:
    from jaxprob.models._posterior import Posterior

LIMIT = 100_000
"""Number of joint values of one group beyond which it is refused."""


def plan(posterior: Posterior, names: tuple[str, ...]) -> tuple[Group, ...]:
    """The groups that the named sites form, once they are found fit to be summed out.

    Args:
      posterior: with data, and nothing summed out.
      names: discrete latent sites.

    Raises:
      ValueError: if a name is unknown, not discrete or not finite, or if what depends on it does not do so elementwise.
    """
    sites = posterior.sites
    for name in names:
        _check_name(name, sites)
    reached, shapes = _dependencies(posterior, names)
    parts = _components(names, [found for (what, _), found in reached.items() if what == "log_prob"])
    groups = []
    for part in parts:
        touched = {kind: [n for (w, n), found in reached.items() if w == kind and found & part] for kind in _KINDS}
        members = tuple(name for name in sites if name in part)
        _check_group(members, touched, sites, shapes)
        dependents = [name for name in touched["log_prob"] if name not in part]
        dependents.sort(key=lambda name: sites[name].role != "latent")
        values = tuple(sites[name].values or () for name in members)
        groups.append(Group(members, values, sites[members[0]].shape, tuple(dependents), tuple(touched["value"])))
        if groups[-1].size > LIMIT:
            got = f"{list(members)} with {groups[-1].size} joint values"
            raise core.bad_value("condition", "marginalize", got, f"at most {LIMIT}", "Sum out fewer of them together")
    return tuple(groups)


def _check_name(name: str, sites: dict[str, Site]) -> None:
    if name not in sites:
        discrete = [known for known, site in sites.items() if site.role == "latent" and site.is_discrete]
        raise core.bad_value("condition", "marginalize", f"{name!r}, which does not exist", f"some of {discrete}")
    site = sites[name]
    if site.role != "latent" or site.values is None:
        state = f"{site.role}, {site.family}" if site.family else site.role
        expected = "a latent site with finitely many values that are known beforehand"
        raise core.bad_value("condition", "marginalize", f"{name!r} ({state})", expected)


def _check_group(
    members: tuple[str, ...],
    touched: dict[str, list[str]],
    sites: dict[str, Site],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    first, shape = members[0], sites[members[0]].shape
    for name in members:
        if sites[name].shape != shape:
            expected = f"{shape}, the shape of {first!r}, since a site depends on both"
            raise core.bad_value("condition", "marginalize", f"{name!r} of shape {sites[name].shape}", expected)
    for name in touched["log_prob"]:
        if shapes[name][: len(shape)] != shape:
            got = f"{first!r} of shape {shape}, while {name!r} has log densities of shape {shapes[name]}"
            raise _not_elementwise(got)
    for name in touched["value"]:
        if sites[name].role == "latent":
            got = f"{first!r}, on which the support of {name!r} depends"
            raise core.bad_value("condition", "marginalize", got, "sites that change no support")


_KINDS = ("log_prob", "value")


def _not_elementwise(got: str) -> ValueError:
    return core.bad_value(
        "condition",
        "marginalize",
        got,
        "sites whose element i only element i of a dependent site depends on",
        "Give every dependent site the shape of what is summed out as its leading axes",
    )


def _dependencies(
    posterior: Posterior, names: tuple[str, ...]
) -> tuple[dict[tuple[str, str], set[str]], dict[str, tuple[int, ...]]]:
    """Which of the named sites each log density and each value may depend on, and the shapes of the log densities.

    Dependence is read off the traced program and errs on the side of too much: what goes through one compiled function
    is taken to depend on all that goes in.
    """
    sites = posterior.sites
    discrete = {name: jax.ShapeDtypeStruct(sites[name].shape, sites[name].dtype) for name in names}
    position = {
        name: jax.ShapeDtypeStruct(site.unconstrained_shape, site.dtype)
        for name, site in sites.items()
        if site.unconstrained_shape is not None
    }

    def outputs(discrete: dict[str, jax.Array], position: dict[str, jax.Array]) -> dict[str, Any]:
        return _scoring.trace(posterior, position, discrete)

    closed, shapes = jax.make_jaxpr(outputs, return_shape=True)(discrete, position)
    reached: dict[int, set[str]] = {}
    for variable, name in zip(closed.jaxpr.invars, sorted(discrete), strict=False):
        reached[id(variable)] = {name}
    for equation in closed.jaxpr.eqns:
        found = set().union(*(reached.get(id(variable), set()) for variable in equation.invars))
        reached |= {id(variable): found for variable in equation.outvars}
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    result = {}
    for (path, _), variable in zip(leaves, closed.jaxpr.outvars, strict=True):
        result[path[0].key, path[1].key] = reached.get(id(variable), set())
    ordered = {(kind, name): result[kind, name] for kind in _KINDS for name in sites if (kind, name) in result}
    return ordered, {name: array.shape for name, array in shapes["log_prob"].items()}


def _components(names: tuple[str, ...], links: list[set[str]]) -> list[set[str]]:
    """The finest partition of `names` in which every link lies within one part."""
    parts = [{name} for name in names]
    for link in links:
        joined = [part for part in parts if part & link]
        parts = [part for part in parts if not part & link] + ([set().union(*joined)] if joined else [])
    return parts


def check_elementwise(posterior: Posterior) -> None:
    """Raises a `ValueError` if a site depends on other elements of what is summed out than its own.

    The log densities at a mixed assignment of values are compared with those that the sums are made of, at a random
    position. Under tracing there are no numbers to compare and nothing is checked.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(posterior)):
        return
    groups = [group for group in posterior.groups if math.prod(group.shape) > 1]
    if not groups:
        return
    for group, found in zip(posterior.groups, _compare(posterior), strict=True):
        for name, same in found.items():
            if not bool(same):
                raise _not_elementwise(f"{group.names[0]!r}, several of whose elements one of {name!r} depends on")


@jax.jit
def _compare(posterior: Posterior) -> list[dict[str, jax.Array]]:
    position = posterior.initial(jax.random.key(0))
    mixed = [jnp.reshape(jnp.arange(math.prod(group.shape)) % group.size, group.shape) for group in posterior.groups]
    (uniform, _), (own, _) = _scoring.scores(posterior, position), _scoring.scores(posterior, position, mixed)
    result: list[dict[str, jax.Array]] = []
    for group, index, terms, other in zip(posterior.groups, mixed, uniform, own, strict=True):
        result.append({})
        for name in group.names + group.dependents:
            expected = jnp.take_along_axis(log_joint(group, terms, (name,)), index[None], axis=0)[0]
            got = log_joint(group, {name: other[name][None]}, (name,))[0]
            scale = 1 + jnp.max(jnp.abs(expected), where=jnp.isfinite(expected), initial=0)
            close = jnp.abs(got - expected) <= 1e-4 * scale
            same_edge = (got == expected) | (jnp.isnan(got) & jnp.isnan(expected))
            result[-1][name] = jnp.all(close | same_edge)
    return result
