"""What load.py, versus.py and soak.py share: texts, statistics, processes, the machine, how a script ends, plot style.

Nothing here knows what is measured, or imports from the folders beside it. Those import from here, and comparison/ from
peers/; loadgen/ and soaking/ stand alone.
"""
