"""Shared by all tests: one thread each, because pytest runs several workers."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
