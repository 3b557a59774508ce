"""What waits: the loop, readiness, timers, and who notices that they are held up. Knows descriptors and calls.

Nothing in here knows what a connection is.
"""
