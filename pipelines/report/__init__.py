"""Round report: measurements, verdict and reasons, sealed into the version.

round_report.py builds and seals it. page.py renders HTML without scripts, plots.py draws reliability diagrams and curves as
SVG. mlflow_tracking.py copies judged rounds to MLflow, if the settings name a server. A plot or page never fails a round.
"""
