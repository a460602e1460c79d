"""What can be tuned: a kernel's parameters, their meant values, their constraints and the default, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

Config = Mapping[str, Any]


def _anything_goes(config: Config, problem: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Tunable:
    """A kernel as the tuner sees it; it names no op and no backend beyond its own ``name``.

    Attributes:
        name: unique, such as "numpy.conv2d.forward".
        space: each parameter's values, in the order in which they are tried.
        default: the configuration for a problem where nothing better is known; always valid.
        refusal: why a configuration cannot run a problem, known without running it; ``None`` if it can.
    """

    name: str
    space: Mapping[str, tuple[Any, ...]]
    default: Callable[[Any], Config]
    refusal: Callable[[Config, Any], str | None] = _anything_goes

    def configs(self, problem: Any) -> Iterator[Config]:
        """Every valid configuration for the problem, in the order of the space."""
        for values in product(*self.space.values()):
            config = dict(zip(self.space, values, strict=True))
            if self.refusal(config, problem) is None:
                yield config

    def check(self, config: Config, problem: Any) -> None:
        """Checks a configuration that somebody asked for.

        Raises:
            ValueError: a parameter is missing or unknown, its value not in the space, or the problem refuses it.
        """
        if set(config) != set(self.space):
            raise ValueError(f"{self.name}: the parameters are {sorted(self.space)}, but got {sorted(config)}")
        for name, value in config.items():
            if value not in self.space[name]:
                raise ValueError(f"{self.name}: {name} is {value!r}, it must be one of {self.space[name]}")
        reason = self.refusal(config, problem)
        if reason is not None:
            raise ValueError(f"{self.name}: {dict(config)} cannot run {problem}: {reason}")
