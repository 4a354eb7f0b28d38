"""The checks and measurements of benchmarks/gpu.py, each a function."""
