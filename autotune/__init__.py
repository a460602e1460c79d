"""Block sizes and algorithms: what a kernel may be run with (its space) and what it is run with (its config)."""

from .device import TARGETS, Device, cpu, device_of, target
from .model import Cost, seconds
from .resolve import pin, resolve
from .space import Config, Key, Tunable, fastest

__all__ = [
    "TARGETS",
    "Config",
    "Cost",
    "Device",
    "Key",
    "Tunable",
    "cpu",
    "device_of",
    "fastest",
    "pin",
    "resolve",
    "seconds",
    "target",
]
