"""Gates: pure decisions under a policy. Each passes, fails or has insufficient evidence.

verdict.py runs them. against_champion.py compares with the champion: superiority, non-inferiority, slices, negative
flips, forgetting. absolute.py asks of the candidate alone: data, must-pass rows, calibration, robustness, baseline,
serving. compressed.py judges a smaller artefact against the full-precision model. evidence_and_facts.py gathers what
they look at, and policy.py reads the thresholds of policy.toml. Feedback is never evidence here.
"""
