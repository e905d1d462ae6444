"""A deep network of cores: an encoder, blocks that are scanned over depth, a last norm and an output layer.

The parameters and the state of the blocks have a leading depth axis, so that one block is compiled however many there
are. Source: the layout of Gu, Goel and Ré (2022), "Efficiently modeling long sequences with structured state spaces";
Lieber et al. (2024), "Jamba", for patterns of several cores.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob.core import bad_value
from jaxprob.models.sequence._block import block, check_core, check_options, unbound
from jaxprob.models.sequence._core import Core, check_reset, check_state
from jaxprob.models.sequence._layers import Linear, Norm

INPUTS = ("dense", None)
POOLS = ("mean", "last", None)


class _Layer(nn.Module):
    """The blocks of one pattern, one after another."""

    blocks: tuple[Core, ...]

    def __call__(
        self, x: jax.Array, states: tuple[Any, ...], reset: jax.Array | None, one: bool, deterministic: bool
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        after = []
        for one_block, state in zip(self.blocks, states, strict=True):
            if one:
                x, state = one_block.step(x, state, deterministic=deterministic)
            else:
                x, state = one_block(x, state, reset, deterministic=deterministic)
            after.append(state)
        return x, tuple(after)


class _Stack(Core):
    """Encoder, blocks over depth, norm, output."""

    layer: _Layer
    repeats: int
    output: int | None = None
    inputs: str | None = "dense"
    vocabulary: int | None = None
    norm: str | None = "rms"
    pool: str | None = None
    remat: bool = False

    factory = "stack"
    mixes_channels = True

    def setup(self) -> None:
        if self.vocabulary is not None:
            self.table = self.param("table", nn.initializers.normal(1.0), (self.vocabulary, self.width), jnp.float32)
        elif self.inputs == "dense":
            self.encoder = Linear(self.width)
        if self.norm is not None:
            self.last_norm = Norm(self.norm)
        if self.output is not None:
            self.head = Linear(self.output)

    def initial_state(self) -> Any:
        """The states of the blocks, depth leading."""
        # Of copies: a bound block would make its parameters here, and they would be those of one depth.
        fresh = [unbound(one).initial_state() for one in self.layer.blocks]
        states = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.repeats, *x.shape)), tuple(fresh))
        blocks = states[0] if len(states) == 1 else states
        if self.pool != "mean":
            return blocks
        return {"blocks": blocks, "count": jnp.zeros((), jnp.float32), "total": jnp.zeros(self.width, jnp.float32)}

    def __call__(
        self, xs: jax.Array, state: Any = None, reset: Any = None, *, deterministic: bool = True
    ) -> tuple[jax.Array, Any]:
        """A whole sequence.

        Args:
          xs: (time, features) of any number of features, or integers (time,) with a vocabulary.
          state: what an earlier call returned; the initial state by default.
          reset: booleans (time,): where true a new sequence begins.
          deterministic: without dropout; otherwise the module wants an rng named "dropout".

        Returns:
          ys (time, output), or (output,) where time is pooled, and the state after the last input.
        """
        self._check("xs", xs, 1)
        state, reset = check_state(self, state), check_reset(self, reset, xs.shape[0])
        xs, blocks = self._through(self._encoded(xs), state, reset, False, deterministic)
        if self.pool == "last":
            return self._decoded(xs[-1]), blocks
        if self.pool is None:
            return self._decoded(xs), blocks
        count, total, here = state["count"], state["total"], jnp.ones((xs.shape[0], 1), bool)
        if reset is not None:
            # What came before a reset is of another sequence.
            resets_after = jnp.cumsum(reset[::-1], dtype=jnp.int32)[::-1] - reset.astype(jnp.int32)
            here = jnp.expand_dims(resets_after == 0, 1)
            count, total = (jnp.where(jnp.any(reset), 0.0, x) for x in (count, total))
        total = total + jnp.sum(jnp.where(here, xs.astype(jnp.float32), 0.0), 0)
        return self._pooled(xs.dtype, blocks, count + jnp.sum(here.astype(jnp.float32)), total)

    def step(self, x: jax.Array, state: Any = None, *, deterministic: bool = True) -> tuple[jax.Array, Any]:
        """One input: (features,), or an integer with a vocabulary; (output,) and the state after it."""
        self._check("x", x, 0)
        state = check_state(self, state)
        x, blocks = self._through(self._encoded(x), state, None, True, deterministic)
        if self.pool != "mean":
            return self._decoded(x), blocks
        return self._pooled(x.dtype, blocks, state["count"] + 1, state["total"] + x.astype(jnp.float32))

    def _check(self, argument: str, x: Any, times: int) -> None:
        """Checks inputs (time, features), or one less axis for tokens and for one time."""
        shape, dtype, tokens = jnp.shape(x), jnp.result_type(x), self.vocabulary is not None
        size: Any = "features"
        if self.inputs is None:
            size = self.width
        elif not tokens and self.encoder.has_variable("params", "kernel"):
            size = self.encoder.get_variable("params", "kernel").shape[0]
        axes = ("time",) * times + (() if tokens else (size,))
        if len(shape) != len(axes) or any(isinstance(n, int) and n != m for n, m in zip(axes, shape, strict=True)):
            wanted = f"({', '.join(map(str, axes))}{',' * (len(axes) == 1)})"
            todo = "Use jax.vmap for a batch" if len(shape) > len(axes) else ""
            raise bad_value("sequence.stack", argument, f"of shape {shape}", wanted, todo)
        if not jnp.issubdtype(dtype, jnp.integer if tokens else jnp.floating):
            wanted, todo = "floating numbers", "vocabulary=K embeds K tokens"
            wanted, todo = ("integers, the tokens", "") if tokens else (wanted, todo)
            raise bad_value("sequence.stack", argument, f"of {dtype}", wanted, todo)
        if 0 in shape:
            raise bad_value("sequence.stack", argument, f"of shape {shape}", "at least one time and one feature")

    def _encoded(self, xs: jax.Array) -> jax.Array:
        if self.vocabulary is None:
            return self.encoder(xs) if self.inputs == "dense" else xs
        # A token that does not exist is not silently another one.
        known = (xs >= 0) & (xs < self.vocabulary)
        return jnp.where(jnp.expand_dims(known, -1), self.table[jnp.where(known, xs, 0)], jnp.nan)

    def _through(
        self, x: jax.Array, state: Any, reset: jax.Array | None, one: bool, deterministic: bool
    ) -> tuple[jax.Array, Any]:
        """Through all blocks; the states in the form of `initial_state`, without the rest of it."""
        states = state["blocks"] if self.pool == "mean" else state
        single = len(self.layer.blocks) == 1

        def body(layer: _Layer, x: jax.Array, states: Any) -> tuple[jax.Array, Any]:
            return layer(x, states, reset, one, deterministic)

        over_depth = nn.scan(
            nn.remat(body, prevent_cse=False) if self.remat else body,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.repeats,
        )
        x, states = over_depth(self.layer, x, (states,) if single else states)
        return (x if self.norm is None else self.last_norm(x)), states[0] if single else states

    def _decoded(self, x: jax.Array) -> jax.Array:
        return x if self.output is None else self.head(x)

    def _pooled(self, dtype: Any, blocks: Any, count: jax.Array, total: jax.Array) -> tuple[jax.Array, Any]:
        return self._decoded((total / count).astype(dtype)), {"blocks": blocks, "count": count, "total": total}


def stack(
    core: Core | list[Core] | tuple[Core, ...],
    depth: int,
    output: int | None = None,
    *,
    inputs: str | None = "dense",
    vocabulary: int | None = None,
    norm: str | None = "rms",
    gate: str | None = "auto",
    dropout: float = 0.0,
    mlp: float | None = None,
    pool: str | None = None,
    remat: bool = False,
) -> Core:
    """A deep sequence network: any number of features in, `depth` residual blocks, `output` numbers out.

    Args:
      core: the core of every block; or several of one width, a pattern that repeats.
      depth: number of blocks, a multiple of the length of the pattern.
      output: numbers of an output; None for the width and no output layer.
      inputs: "dense" for a linear map from the features to the width; None where inputs have the width.
      vocabulary: K where inputs are integers from 0 to K - 1, which are embedded. Others give NaN.
      norm, gate, dropout, mlp: of each block, as for `block`; the norm also before the output.
      pool: "mean" or "last" for one output of the whole sequence, "mean" since the last reset; None for one a time.
        `step` gives what the sequence gives that ends there.
      remat: under grad keep only what goes between blocks, and compute the rest again.

    Returns:
      a module. `ys, state = net.apply(params, xs, state, reset)`, `y, state = net.apply(params, x, state,
      method="step")`. Parameters of blocks and the state have a leading axis of depth (over the length of the pattern).

    Raises:
      TypeError: if `core` is not a core or several.
      ValueError: if widths differ, the pattern does not divide the depth, or an option is not one of those above.

    >>> from jaxprob.models import sequence
    >>> net = sequence.stack(sequence.gru(width=8), depth=3, output=2)
    >>> xs = jnp.ones((5, 4))
    >>> params = net.init(jax.random.key(0), xs)
    >>> ys, state = net.apply(params, xs)
    >>> ys.shape, state.shape
    ((5, 2), (3, 8))
    """
    name = "sequence.stack"
    pattern = tuple(core) if isinstance(core, (list, tuple)) else (core,)
    if not pattern:
        raise bad_value(name, "core", core, "a core, or a pattern of at least one")
    for one in pattern:
        check_core(name, one)
    widths = [one.width for one in pattern]
    if len(set(widths)) > 1:
        raise bad_value(name, "core", f"of widths {widths}", "cores of one width")
    check_options(name, norm, gate, dropout, mlp)
    for argument, value in (("depth", depth), ("output", output), ("vocabulary", vocabulary)):
        optional = value is None and argument != "depth"
        if not optional and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise bad_value(name, argument, value, "a whole number, 1 or more" + (", or None" * (argument != "depth")))
    if depth % len(pattern):
        raise bad_value(name, "depth", depth, f"a multiple of {len(pattern)}, the number of cores that repeat")
    for argument, choice, choices in (("inputs", inputs, INPUTS), ("pool", pool, POOLS)):
        if choice not in choices:
            raise bad_value(name, argument, choice, f"one of {', '.join(map(repr, choices))}")
    blocks = tuple(block(one, norm=norm, gate=gate, dropout=dropout, mlp=mlp) for one in pattern)
    repeats = depth // len(pattern)
    return _Stack(widths[0], _Layer(blocks), repeats, output, inputs, vocabulary, norm, pool, remat)
