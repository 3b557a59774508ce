"""The character-count service: the application that evloop grew from, and an example of one.

Nothing in the rest of evloop imports it.
"""
