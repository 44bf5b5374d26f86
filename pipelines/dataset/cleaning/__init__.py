"""Cleaning: which rows are fit to train, and one label for each text.

clean.py drops rows that teach nothing, names.py replaces names and places, quarantine.py finds people whose labels contradict
everybody else's. deduplicate.py clusters near-duplicates, and aggregate.py gives each cluster the label of most votes.
"""
