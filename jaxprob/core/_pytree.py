"""Frozen classes that are honest pytrees.

`@pytree` turns a class with annotated fields into a frozen dataclass whose array fields are leaves and whose `static`
fields are part of the structure. Rebuilding one from its leaves skips `__init__`, so that checks made at construction
never meet the placeholders and batched leaves that transformations put there.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**options: Any) -> Any:
    """Marks a field of a `@pytree` class as part of the structure: hashable, compared by value, never traced."""
    return dataclasses.field(metadata={"static": True}, **options)


def _repr(node: Any) -> str:
    """`Name(field=value, ...)` of every field, those that a subclass added included."""
    fields = ", ".join(f"{field.name}={getattr(node, field.name)!r}" for field in dataclasses.fields(node))
    return f"{type(node).__qualname__}({fields})"


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """The function from an object to the tuple of these attributes; quick, as it runs at each call of a program."""
    if len(names) > 1:
        return operator.attrgetter(*names)
    return (lambda node: (getattr(node, names[0]),)) if names else (lambda node: ())


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass, registered as a pytree with named leaves.

    `__post_init__` may check and convert fields, with `object.__setattr__`; it runs at construction only. Equality is
    identity, since arrays do not compare to one truth value.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    if cls.__repr__ is object.__repr__:
        cls.__repr__ = _repr  # type: ignore[method-assign]
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    dynamic = tuple(f.name for f in fields if not f.metadata.get("static"))
    fixed = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten_with_keys(node: Any) -> Any:
        children = [(jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in dynamic]
        return children, tuple(getattr(node, name) for name in fixed)

    children_of, aux_of = _reader(dynamic), _reader(fixed)

    def flatten(node: Any) -> Any:
        return children_of(node), aux_of(node)

    def unflatten(aux: Any, children: Any) -> Any:
        node = object.__new__(cls)
        for name, value in zip(dynamic, children, strict=True):
            object.__setattr__(node, name, value)
        for name, value in zip(fixed, aux, strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
