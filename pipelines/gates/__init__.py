"""Gates: pure decisions under a policy. Each gate passes, fails or has insufficient evidence.

verdict.py runs them. against_champion.py compares with the champion: superiority, non-inferiority, slices, negative flips,
forgetting. absolute.py judges the candidate alone: data, must-pass rows, calibration, robustness, baseline, serving.
compressed.py judges a compressed artefact against the full-precision model. evidence_and_facts.py collects the input,
policy.py reads the thresholds of policy.toml, policy_changes.py what changed, result.py builds results. before_looking.py holds
candidates back that are not worth a look, alpha_spending.py says what a look may spend, power.py what a reference set can show.
settling.py judges by labels on disagreements. Feedback is never evidence.
"""
