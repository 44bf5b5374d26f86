"""Build a round's dataset from files and feedback, with a reason for every row that is left out.

build.py's steps: collect, clean, cap each person, quarantine, group near-duplicates, merge by vote, assign sides, replay and
balance. Rows in equal rows kept plus rows dropped by reason (manifest.py). The search for near-duplicates (Jaccard similarity
of character 3-grams of at least 0.9) is exact (PartEnum, Arasu et al. 2006). Every row in use leads its group, so no two of
them are near-duplicates, whatever their sides. A group's side is drawn from a keyed hash, and stored once in the split ledger.

files.py reads labelled files; project_dataset.py joins a project's files and feedback. replayed.py says how many of the
champion's answers that nobody corrected train beside them. obstacles.py says why a dataset allows no round. report/ describes
the result.
"""
