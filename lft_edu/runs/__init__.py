"""Long runs: planned, trained, evaluated and reported. What ``lft-edu train`` and lesson 08 are made of.

========  =======================================================================
settings  ``RunSettings``: everything that a run depends on
plans     time, memory and disk, before anything starts
costs     operations, latencies
run       ``train``: from settings to a saved student
cards     the results card
========  =======================================================================
"""
