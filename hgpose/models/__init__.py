"""Networks, one file each, and the registry that builds them from a model card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hgpose.models.finder import PersonFinder
from hgpose.models.hourglass import StackedHourglass
from hgpose.models.hourglass52 import Hourglass52

_KINDS: dict[str, Callable[..., nn.Module]] = {
    "stacked_hourglass": StackedHourglass,
    "person_finder": PersonFinder,
    "hourglass52": Hourglass52,
}


def build_model(architecture: Mapping[str, Any]) -> nn.Module:
    """A freshly initialised network from ``{"kind": ..., **parameters}``.

    Raises:
        ValueError: there is no such kind.
    """
    parameters = dict(architecture)
    kind = parameters.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown architecture {kind!r}; known: {', '.join(_KINDS)}")
    return _KINDS[kind](**parameters)
