"""One run of a program with data: its log densities, at a position or at a draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution
from jaxprob.models import _sites
from jaxprob.models._groups import enumerate_groups

if TYPE_CHECKING:
    from jaxprob.models._posterior import Posterior

Read = Callable[[str, Distribution], Any]


def scores(posterior: Posterior, position: dict[str, Any], indices: list[jax.Array] | None = None) -> Any:
    """The log densities that `log_density` adds up.

    Args:
      position: name to unconstrained array.
      indices: for each group the joint index of its value, () or of its shape; all of them if not given.

    Returns:
      for each group a dict from each site that depends on it to an array (size, ...); and, for what depends on
      none, a dict of arrays and a dict of scalar log-determinants. Without the axis `size` if `indices` is given.
    """
    log_dets: dict[str, jax.Array] = {}

    def read(name: str, distribution: Distribution) -> jax.Array:
        value, log_det = onto_support("log_density", position, name, distribution)
        log_dets[name] = jnp.sum(log_det)
        return value

    def one(indices: list[jax.Array]) -> Any:
        log_dets.clear()
        inside, outside = _score(posterior, read, indices)
        return inside, (outside, dict(log_dets))

    result = enumerate_groups(one, posterior.groups) if indices is None else one(indices)
    _sites.check_known("log_density", "position", position, result[1][1])
    return result


def trace(posterior: Posterior, position: dict[str, Any], discrete: dict[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """The log density of every random site, and the values of the latent and deterministic ones.

    Args:
      position: name to unconstrained array.
      discrete: values of the discrete latent sites.

    Returns:
      "log_prob" and "value", each a dict by name.
    """
    latent: dict[str, jax.Array] = {}
    log_probs: dict[str, jax.Array] = {}

    def read(name: str, distribution: Distribution) -> jax.Array:
        if name in discrete:
            return discrete[name]
        latent[name], _ = onto_support("trace", position, name, distribution)
        return latent[name]

    outcome = run(posterior, read, log_probs)
    return {
        "log_prob": log_probs,
        "value": latent | {name: outcome.values[name] for name in outcome.deterministic},
    }


def run(
    posterior: Posterior,
    read: Read,
    log_probs: dict[str, jax.Array] | None = None,
    indices: list[jax.Array] | None = None,
) -> _sites.Outcome:
    """Runs the program with the data; latent values come from `read`, those summed out from their index (or 0)."""
    place = {name: i for i, group in enumerate(posterior.groups) for name in group.names}

    def visit(name: str, distribution: Distribution, given: Any) -> Any:
        if given is not None:
            value = given
        elif name in posterior.data:
            value = posterior.data[name]
        elif name in place:
            index = jnp.zeros((), int) if indices is None else indices[place[name]]
            value = posterior.groups[place[name]].value(name, index)
        else:
            value = read(name, distribution)
        if log_probs is not None:
            log_probs[name] = distribution.log_prob(value)
        return value

    return _sites.run(posterior.program, visit)


def _score(
    posterior: Posterior, read: Read, indices: list[jax.Array]
) -> tuple[list[dict[str, jax.Array]], dict[str, jax.Array]]:
    """Log densities by site: for each group those of the sites that depend on it, and those of all others."""
    log_probs: dict[str, jax.Array] = {}
    run(posterior, read, log_probs, indices)
    inside = [{name: log_probs.pop(name) for name in group.names + group.dependents} for group in posterior.groups]
    return inside, log_probs


def score_draw(posterior: Posterior, draw: dict[str, Any]) -> Any:
    """As `_score`, for every value of the groups, at constrained values."""

    def read(name: str, distribution: Distribution) -> Any:
        return _sites.look_up("log_likelihood", "draws", draw, name, distribution)

    return enumerate_groups(lambda indices: _score(posterior, read, indices), posterior.groups)


def onto_support(
    function: str, position: dict[str, Any], name: str, distribution: Distribution
) -> tuple[jax.Array, jax.Array]:
    """The value of a latent site at a position, and the log-determinant of the map."""
    check_continuous(function, name, distribution)
    if name not in position:
        raise core.bad_value(function, "position", f"without {name!r}", "an array for every latent site")
    bijector, u = distribution.support.bijector, jnp.asarray(position[name])
    shape = tuple(bijector.inverse_shape(distribution.shape))
    if u.shape != shape:
        todo = "Use jax.vmap for several positions at once"
        raise core.bad_value(function, f"position[{name!r}]", f"of shape {u.shape}", f"the shape {shape}", todo)
    return bijector.forward_and_log_det(u)


def check_continuous(function: str, name: str, distribution: Distribution) -> None:
    """Raises a `ValueError` if a latent site is discrete."""
    if distribution.is_discrete:
        raise discrete_error(function, name, _sites.kind(distribution))


def discrete_error(function: str, name: str, family: str) -> ValueError:
    """What to say of a latent site that is discrete."""
    return core.bad_value(
        function,
        f"site {name!r}",
        f"latent and discrete ({family})",
        "continuous latent sites",
        f"Give it data, sum it out with condition(..., marginalize={name!r}), or set it with substitute",
    )
