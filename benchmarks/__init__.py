"""Benchmarks of every op beside torch's: ``pytest --benchmark``."""
