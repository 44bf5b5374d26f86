"""The round report: what was measured, the verdict and why, sealed into the version.

round_report.py builds and seals it, page.py renders HTML without scripts, plots.py draws reliability diagrams and
curves as SVG, mlflow_tracking.py mirrors judged rounds to MLflow where the settings name a server. No plot or page
may fail a round.
"""
