"""The other programs that the CPU benchmarks start, and the clock of their steps."""
