"""What moves bytes: connections, in and out, what they are made of, and their time-outs.

Who accepts connections, how many there may be, and what becomes of all of them in the end is not in here.
"""
