"""The interface of asyncore and asynchat, which left Python in 3.12, for programs that move.

Old names, and how they are served by a loop. Nothing new is built on it: no other folder imports from here.
"""
