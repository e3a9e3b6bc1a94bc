"""Benchmarks: each script compares, in one run and on one thread, arcsm, the naive way and the limit."""
