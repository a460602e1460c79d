"""What can be tuned: a kernel's parameters, their meant values, their constraints and the default, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

from .device import Device, cpu
from .model import Cost, seconds
from .portfolio import ASKED, portfolio

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """What a measurement is filed under.

    Attributes:
        exact: everything that must be equal for a configuration to be comparable.
        sizes: numbers by name, of which near ones may stand for each other.
    """

    exact: tuple[Any, ...]
    sizes: Mapping[str, float]


def _anything_goes(config: Config, problem: Any) -> str | None:
    return None


@dataclass(frozen=True, eq=False)
class Tunable:
    """A kernel as the tuner sees it; it names no op and no backend beyond its own ``name``.

    Attributes:
        name: unique, such as "numpy.conv2d.forward".
        space: each parameter's values, in the order in which they are tried.
        default: the configuration for a problem where nothing better is known; always valid.
        refusal: why a configuration cannot run a problem, known without running it; ``None`` if it can.
        reasons: for each parameter, why its values are what they are; printed in the table of kernels.
        key: of a problem: an exact part, and sizes that may be compared on a logarithmic scale.
        cost: what a configuration costs on a problem.
        abi: counted up when the same parameter values come to mean something else; rows of another number are ignored.
    """

    name: str
    space: Mapping[str, tuple[Any, ...]]
    default: Callable[[Any], Config]
    refusal: Callable[[Config, Any], str | None] = _anything_goes
    reasons: Mapping[str, str] = field(default_factory=dict)
    key: Callable[[Any], Key] | None = None
    cost: Callable[[Config, Any], Cost] | None = None
    abi: int = 1

    def every_config(self) -> Iterator[Config]:
        """Of the whole space, in its order, whether or not a problem refuses it."""
        for values in product(*self.space.values()):
            yield dict(zip(self.space, values, strict=True))

    def configs(self, problem: Any) -> Iterator[Config]:
        """Every valid configuration for the problem, in the order of the space."""
        for config in self.every_config():
            if self.refusal(config, problem) is None:
                yield config

    def predicted(self, config: Config, problem: Any) -> float | None:
        """The analytic model's time in seconds, on the problem's device (else this CPU); ``None`` without a cost."""
        if self.cost is None:
            return None
        return seconds(self.cost(config, problem), getattr(problem, "device", None) or cpu())

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


def fastest(tunable: Tunable, problem: Any, device: Device) -> Config:
    """The valid configuration that the analytic model predicts to be fastest, of the few that the kernel's portfolio
    proposes; of the whole space where it has none that can run the problem. Of equals the first.

    Raises:
        ValueError: no configuration can run the problem.
    """
    proposed = (c for c in portfolio(tunable, problem) if tunable.refusal(c, problem) is None)
    best = _fastest_of(tunable, islice(proposed, ASKED), problem, device)
    best = best or fastest_of_all(tunable, problem, device)
    if best is None:
        raise ValueError(f"{tunable.name}: no configuration can run {problem}")
    return best


def fastest_of_all(tunable: Tunable, problem: Any, device: Device) -> Config | None:
    """The same of the whole space, which takes milliseconds; ``None`` if nothing can run the problem."""
    return _fastest_of(tunable, tunable.configs(problem), problem, device)


def _fastest_of(tunable: Tunable, configs: Iterable[Config], problem: Any, device: Device) -> Config | None:
    assert tunable.cost is not None, f"{tunable.name} declares no cost"
    best, least = None, float("inf")
    for config in configs:
        time = seconds(tunable.cost(config, problem), device)
        if time < least:
            best, least = config, time
    return best
