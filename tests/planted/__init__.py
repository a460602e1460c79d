"""An op of which some configurations are wrong, each in a way of its own: what the tuner must find out."""

from __future__ import annotations

from tilesmith.kernels.backends import Operation

OPERATION = Operation("planted", __name__, {"numpy": "._numpy"})
