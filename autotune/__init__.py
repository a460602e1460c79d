"""Block sizes and algorithms: what a kernel may be run with (its space), what it is run with (its config), and how the
better ones are found, kept and looked up."""

from typing import TYPE_CHECKING, Any

from .device import TARGETS, Device, cpu, device_of, target
from .model import Cost, seconds
from .resolve import MODES, NotTuned, current_mode, pin, resolve
from .space import Config, Key, Tunable, fastest

if TYPE_CHECKING:
    from .calls import Call, Recording, record
    from .tuning import check_ranks, digest, mode, recorded, tune, tune_calls

__all__ = [
    "MODES",
    "TARGETS",
    "Call",
    "Config",
    "Cost",
    "Device",
    "Key",
    "NotTuned",
    "Recording",
    "Tunable",
    "check_ranks",
    "cpu",
    "device_of",
    "digest",
    "fastest",
    "mode",
    "pin",
    "record",
    "recorded",
    "resolve",
    "seconds",
    "target",
    "tune",
    "tune_calls",
]

# What measures is imported when it is asked for: looking up needs none of it.
_LATER = dict.fromkeys(("check_ranks", "digest", "mode", "recorded", "tune", "tune_calls"), "tuning")
_LATER |= dict.fromkeys(("Call", "Recording", "record"), "calls")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if current_mode() in ("tune_on_miss", "force"):  # said in the environment
    from .tuning import tune_always

    tune_always(current_mode())
