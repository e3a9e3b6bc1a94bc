"""Fuzzing of everything that reads a file; ``python -m fuzz --help``."""
