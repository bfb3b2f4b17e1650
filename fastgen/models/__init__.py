"""Builders of graphs, by name.

>>> from fastgen import models
>>> graph = models.create("transformer_net", width=16)

A builder is a function ``(**config) -> Graph`` decorated with :func:`register`. Tests and exports
enumerate :func:`list_models`, so registering a model is also testing it on every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from fastgen.graph import Graph

__all__ = ["create", "list_models", "register"]

_REGISTRY: dict[str, Callable[..., Graph]] = {}
_FAMILIES = ("saae", "style")


def register(builder: Callable[..., Graph]) -> Callable[..., Graph]:
    """Registers a builder under its function name."""
    _REGISTRY[builder.__name__] = builder
    return builder


def _load() -> None:
    for family in _FAMILIES:
        import_module(f"fastgen.models.{family}")


def list_models(family: str | None = None) -> list[str]:
    """Names of the registered models, sorted.

    Args:
        family: only those of one family, which is the stem of their file: ``"style"`` (one image
            in, one of the same size out) or ``"saae"`` (content and style in).

    Raises:
        ValueError: unknown family.
    """
    _load()
    if family is not None and family not in _FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(_FAMILIES)}")
    return sorted(
        name
        for name, builder in _REGISTRY.items()
        if family is None or builder.__module__ == f"fastgen.models.{family}"
    )


def create(name: str, **config: object) -> Graph:
    """Builds the graph of a registered model.

    Args:
        name: one of :func:`list_models`.
        **config: the builder's keyword arguments, e.g. ``width=16``.

    Raises:
        ValueError: unknown name, or a configuration value outside its limits.
        TypeError: an argument that the builder does not have.
    """
    _load()
    if name not in _REGISTRY:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name](**config)
