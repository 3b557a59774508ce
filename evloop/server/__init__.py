"""Who serves: listeners, the connections they accept, how many there may be, and an orderly end.

Signals, settings and the process are not in here: a program may run several servers in one loop.
"""
