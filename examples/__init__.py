"""Example programs: run from the repository's root, not shipped with the package."""
