"""Model selection: which base models fit a project's data and this machine, and which of them learns it best.

workload.py describes the data. cost.py estimates time and memory of a round and of serving: it times a few layers with random
weights, so a model needs no download. candidates.py lists the bases, verdicts.py says which fit and why not, and bake_off.py
trains those that fit for minutes each and ranks them on validation rows. `ratchet model advise` prints the result.
"""
