"""Names that were public under another name or in another module."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def moved(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds names where they are now, and warns.

    Args:
        module: whose names they were.
        names: each with where it is now, as ``module.name``.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        now = f"caption_extents.{names[name]}"
        warnings.warn(f"{module}.{name} is now {now}", DeprecationWarning, stacklevel=2)
        place, _, attribute = now.rpartition(".")
        return getattr(importlib.import_module(place), attribute)

    return get
