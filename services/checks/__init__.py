"""Checks: what can be known to be wrong before anything runs.

preflight.py holds settings, keys, policy and files against what a project needs; `init`, `doctor` and `up` share it.
data_summary.py says what the labelled files hold and what they can show. champion.py verifies the files of the
champion and of the versions to fall back on.
"""
