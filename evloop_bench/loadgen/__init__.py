"""The load harness: what `benchmarks/load.py` is made of. See docs/benchmarking.md."""
