"""The dataset of a round: rows of files and feedback in, rows on four sides out, every row accounted for.

build.py is a straight line: collect, clean, cap each person, quarantine, group near-duplicates, merge by vote, assign
sides, replay and balance. Rows in equal rows kept plus rows dropped by reason. Near-duplicates (Jaccard of character
trigrams >= 0.9) are found exactly (PartEnum, Arasu et al. 2006). Every row in use leads its group, so no two rows in
use are near each other, whatever their sides. A group's side is a keyed hash, written once to the split ledger.

files.py reads what people have; project_dataset.py joins a project's files and feedback.
"""
