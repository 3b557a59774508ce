"""What `versus.py` is made of: the scenarios, running them against each server, statistics, tables and plots."""
