"""Process set-up: file permissions, log format, crash points and BentoML's process manager.

private_files.py closes new files and folders to other users; log_lines.py formats every log record as one line;
process_manager.py removes the control ports of BentoML's process manager, so that no local user can command it.
crash_points.py lets a test kill a process at a named point.
"""
