"""Gates: pure decisions under a policy. Each gate passes, fails or has insufficient evidence.

verdict.py runs them. against_champion.py compares with the champion: superiority, non-inferiority, slices, negative flips,
forgetting. absolute.py judges the candidate alone: data, must-pass rows, calibration, robustness, baseline, serving.
compressed.py judges a compressed artefact against the full-precision model. evidence_and_facts.py collects the input,
policy.py reads the thresholds of policy.toml, result.py builds results. Feedback is never evidence.
"""
