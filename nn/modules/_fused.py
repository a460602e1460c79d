"""What the layers with a fused activation share."""

from __future__ import annotations

from ...kernels.activation import ACTIVATIONS


class FusedActivation:
    """An ``activation`` attribute, shown in the repr where there is one; absent (as after unpickling) means none."""

    activation: str | None = None

    @staticmethod
    def _checked(activation: str | None) -> str | None:
        names = [name for name in ACTIVATIONS if name != "none"]
        if activation is not None and activation not in names:
            raise ValueError(f"activation is {activation!r}, it must be None or one of {', '.join(map(repr, names))}")
        return activation

    def extra_repr(self) -> str:
        described: str = super().extra_repr()  # type: ignore[misc]
        return described if self.activation is None else f"{described}, activation={self.activation}"
