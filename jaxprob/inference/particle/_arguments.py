"""The arguments that particle methods have in common: a model of any kind, and its data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.particle._model import Datum, as_data, feynman_kac
from jaxprob.inference.smc import FeynmanKac


def as_feynman_kac(function: str, model: Any, ys: Any, *, kernel: bool, proposal: Any = None) -> tuple[FeynmanKac, Any]:
    """A Feynman-Kac model and its data, of a state-space model and its observations.

    Args:
      function: name of the caller, for the error message.
      model: a `FeynmanKac`, which is returned as it is, or what `particle.feynman_kac` takes.
      ys: observations, or the data of a `FeynmanKac`.
      kernel: whether `log_kernel` is needed.
      proposal: of a state-space model, as for `particle.feynman_kac`.

    Raises:
      TypeError: for no model.
      ValueError: if the kernel is needed and the model has none, observations do not fit, or a proposal is given for a
        `FeynmanKac`.
    """
    data = ys
    if isinstance(model, FeynmanKac) and proposal is not None:
        todo = "It proposes by kernels of its own"
        raise core.bad_value(function, "proposal", core.describe(proposal), "None for a smc.FeynmanKac", todo)
    if not isinstance(model, FeynmanKac):
        data = ys if isinstance(ys, Datum) else as_data(function, model, ys)
        model = feynman_kac(model, proposal)
    if kernel and model.log_kernel is None:
        raise core.bad_value(function, "model", "without log_kernel", "one with log_kernel", "Smoothers go back by it")
    return model, data


def num_times(function: str, ys: Any) -> int:
    """How many times there are in observations (time, ...), one or more.

    Raises:
      ValueError: if there is none.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(ys)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise core.bad_value(function, "ys", core.describe(ys), "arrays (time, ...) of at least one time")
    return lengths.pop()[0]
