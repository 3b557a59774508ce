"""The load harness: ``evloop-load``, in a checkout `benchmarks/load.py`; and what all benchmarks share.

It is a package of its own so that it can be installed: nothing in ``evloop`` imports it. See docs/benchmarking.md.
"""
