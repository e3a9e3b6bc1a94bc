"""Benchmarks: each script compares, in one run and on one thread, ours, the naive way and the limit."""
