"""A service of several processes: a supervisor that holds the sockets, workers that serve, and who takes over.

Loaded only by programs that are several processes, or become another one. What one process does alone is not in here.
"""
