"""A server as a program: signals, the main function.

What a server is used for is not in here.
"""
