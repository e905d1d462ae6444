"""Tasks that ask for what was seen: copying, recalling, adding, counting modulo two."""

from __future__ import annotations

import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.sequence.tasks._example import Example


def copy(key: core.Key, *, symbols: int = 8, memory: int = 10, delay: int = 20) -> Example:
    """Some symbols, a pause, and the symbols again.

    Inputs are `memory` symbols, delay - 1 blanks, a marker and `memory` blanks, under which the symbols are to be said
    in their order.

    Args:
      key: random key.
      symbols: number of symbols, tokens 1 to `symbols`; 0 is blank, `symbols + 1` the marker.
      memory: symbols of an example.
      delay: times between the last symbol and its like, the marker among them.

    Returns:
      `Example` with 2 memory + delay times; the mask is true for the last `memory`.

    Raises:
      ValueError: if a number is less than 1.

    >>> inputs, targets, mask = copy(jax.random.key(0), symbols=4, memory=2, delay=3)
    >>> inputs.tolist(), targets[mask].tolist()
    ([2, 1, 0, 0, 5, 0, 0], [2, 1])

    Source: Hochreiter and Schmidhuber (1997), "Long short-term memory"; in this form Arjovsky, Shah and Bengio (2016),
    "Unitary evolution recurrent neural networks", section 4.1.
    """
    core.check_whole("tasks.copy", symbols=symbols, memory=memory, delay=delay)
    said = core.random.randint(key, (memory,), 1, symbols + 1)
    blanks = jnp.zeros(memory, jnp.int32)
    inputs = jnp.concatenate([said, jnp.zeros(delay - 1, jnp.int32), jnp.full(1, symbols + 1), blanks])
    targets = jnp.concatenate([blanks, jnp.zeros(delay, jnp.int32), said])
    return Example(inputs, targets, jnp.arange(2 * memory + delay) >= memory + delay)


def selective_copy(key: core.Key, *, symbols: int = 8, memory: int = 10, length: int = 100) -> Example:
    """Some symbols among blanks, anywhere in a sequence, to be said in their order at its end.

    Args:
      key: random key.
      symbols: number of symbols, tokens 1 to `symbols`; 0 is blank, `symbols + 1` the marker.
      memory: symbols of an example.
      length: times among which they are spread.

    Returns:
      `Example` with length + memory times, markers for inputs and a mask that is true for the last `memory`.

    Raises:
      ValueError: if a number is less than 1, or there are more symbols than times.

    >>> inputs, targets, mask = selective_copy(jax.random.key(2), symbols=4, memory=2, length=5)
    >>> inputs.tolist(), targets[mask].tolist()
    ([0, 4, 2, 0, 0, 5, 5], [4, 2])

    Source: Jing et al. (2019), "Gated orthogonal recurrent units"; Gu and Dao (2023), "Mamba", section 4.1.1.
    """
    core.check_whole("tasks.selective_copy", symbols=symbols, memory=memory, length=length)
    if memory > length:
        raise core.bad_value("tasks.selective_copy", "memory", memory, f"at most length, {length}")
    where, what = core.random.split(key)
    places = jnp.sort(core.random.permutation(where, length)[:memory])
    said = core.random.randint(what, (memory,), 1, symbols + 1)
    spread = jnp.zeros(length, jnp.int32).at[places].set(said)
    inputs = jnp.concatenate([spread, jnp.full(memory, symbols + 1)])
    targets = jnp.concatenate([jnp.zeros(length, jnp.int32), said])
    return Example(inputs, targets, jnp.arange(length + memory) >= length)


def associative_recall(
    key: core.Key,
    *,
    keys: int = 16,
    values: int = 16,
    pairs: int = 8,
    queries: int | None = None,
    distinct: bool = True,
) -> Example:
    """Pairs of a key and a value, and then keys whose values are to be said.

    Args:
      key: random key.
      keys: number of keys, tokens 0 to keys - 1.
      values: number of values, tokens keys to keys + values - 1.
      pairs: pairs that are shown.
      queries: keys that are asked for at the end, those of different pairs; all pairs by default.
      distinct: whether no key is shown twice. Otherwise a later pair replaces an earlier one of the same key, which a
        memory that only adds cannot do.

    Returns:
      `Example` with 2 pairs + queries times; under a query stands the value of its key. The mask is true for queries.

    Raises:
      ValueError: if a number is less than 1, there are fewer keys than pairs where they are distinct, or more queries
        than pairs.

    >>> inputs, targets, mask = associative_recall(jax.random.key(2), keys=4, values=4, pairs=2)
    >>> inputs.tolist(), targets[mask].tolist()
    ([1, 7, 2, 5, 2, 1], [5, 7])

    Source: Ba et al. (2016), "Using fast weights to attend to the recent past"; with many queries Arora et al. (2024),
    "Zoology".
    """
    queries = pairs if queries is None else queries
    core.check_whole("tasks.associative_recall", keys=keys, values=values, pairs=pairs, queries=queries)
    if distinct and pairs > keys:
        raise core.bad_value(
            "tasks.associative_recall", "pairs", pairs, f"at most keys, {keys}, where they are distinct"
        )
    if queries > pairs:
        raise core.bad_value("tasks.associative_recall", "queries", queries, f"at most pairs, {pairs}")
    which, what, order = core.random.split(key, 3)
    shown = core.random.permutation(which, keys)[:pairs] if distinct else core.random.randint(which, (pairs,), 0, keys)
    said = core.random.randint(what, (pairs,), keys, keys + values)
    asked = shown[core.random.permutation(order, pairs)[:queries]]
    same = jnp.expand_dims(asked, 1) == jnp.expand_dims(shown, 0)
    latest = jnp.max(jnp.where(same, jnp.expand_dims(jnp.arange(pairs), 0), -1), 1)
    inputs = jnp.concatenate([jnp.stack([shown, said], 1).reshape(-1), asked])
    targets = jnp.concatenate([jnp.zeros(2 * pairs, jnp.int32), said[latest]])
    return Example(inputs, targets, jnp.arange(2 * pairs + queries) >= 2 * pairs)


def adding(key: core.Key, *, length: int = 100) -> Example:
    """Numbers between 0 and 1 of which two are marked, one in each half: their sum is wanted at the end.

    Saying 1 has a mean squared error of 1/6.

    Args:
      key: random key.
      length: times, 2 or more.

    Returns:
      `Example` with inputs (length, 2), a number and a mark, targets (length, 1), and a mask that is true at the last
      time only.

    Raises:
      ValueError: if `length` is less than 2.

    >>> inputs, targets, mask = adding(jax.random.key(0), length=6)
    >>> inputs[:, 1].sum().item(), mask.tolist()
    (2.0, [False, False, False, False, False, True])

    Source: Hochreiter and Schmidhuber (1997), "Long short-term memory", section 5.4; in this form Le, Jaitly and Hinton
    (2015), "A simple way to initialize recurrent networks of rectified linear units".
    """
    core.check_whole("tasks.adding", 2, length=length)
    what, first, second = core.random.split(key, 3)
    numbers = core.random.uniform(what, (length,))
    early = core.random.randint(first, (), 0, length // 2)
    late = core.random.randint(second, (), length // 2, length)
    place = jnp.arange(length)
    marks = ((place == early) | (place == late)).astype(numbers.dtype)
    mask = place == length - 1
    targets = jnp.where(mask, numbers[early] + numbers[late], 0)
    return Example(jnp.stack([numbers, marks], 1), jnp.expand_dims(targets, 1), mask)


def parity(key: core.Key, *, length: int = 40) -> Example:
    """Bits, and at each time whether an odd number of ones was seen.

    Args:
      key: random key.
      length: times.

    Returns:
      `Example` with inputs and targets (length,) of 0 and 1, and a mask that is true everywhere.

    Raises:
      ValueError: if `length` is less than 1.

    >>> inputs, targets, mask = parity(jax.random.key(2), length=6)
    >>> inputs.tolist(), targets.tolist()
    ([1, 0, 1, 1, 1, 0], [1, 1, 0, 1, 0, 0])

    Source: Minsky and Papert (1969), "Perceptrons", chapter 3; Grazzi et al. (2025), "Unlocking state-tracking in
    linear RNNs through negative eigenvalues".
    """
    core.check_whole("tasks.parity", length=length)
    bits = core.random.randint(key, (length,), 0, 2)
    return Example(bits, jnp.cumsum(bits, dtype=jnp.int32) % 2, jnp.ones(length, bool))
