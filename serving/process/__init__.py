"""The process: what every process of ours sets up before anything else.

private_files.py closes files and folders to other users; log_lines.py makes one record one line, whatever stands in
it; process_manager.py takes the control ports from BentoML's process manager, so that no local user can command it.
"""
