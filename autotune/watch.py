"""Whether anybody wants to know of the calls that kernels serve. By itself, for every program imports it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# told of each call before it is made (module, function, problem, inputs, outputs); None most of the time
told: Callable[..., Any] | None = None
