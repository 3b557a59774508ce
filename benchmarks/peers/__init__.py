"""The same service on other foundations, one small server each.

`registry` lists them; ``python -m benchmarks.peers.NAME PORT`` runs one.
"""
