"""What moves bytes: connections, in and out, and what they are made of.

One connection at a time: what a server does with many of them is not in here.
"""
