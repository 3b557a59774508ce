"""What bytes mean: framings without I/O, and the protocols that use them.

What only one application needs is not in here.
"""
