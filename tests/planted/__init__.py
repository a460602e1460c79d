"""An op of which some configurations are wrong, each in a way of its own: what the tuner must find out."""

from __future__ import annotations

from types import ModuleType
from typing import Any


class Operation:
    """As much of an operation as the tuner asks for."""

    backends = ("numpy",)

    @staticmethod
    def named(_: str) -> ModuleType:
        from . import _numpy

        return _numpy


OPERATION: Any = Operation()
