"""Block sizes and algorithms: what a kernel may be run with (its space) and what it is run with (its config)."""

from .resolve import pin, resolve
from .space import Config, Tunable

__all__ = ["Config", "Tunable", "pin", "resolve"]
