"""Process set-up: file permissions, log format, memory, traces, crash points and BentoML's process manager.

private_files.py closes new files and folders to other users; log_lines.py formats every log record as one line. memory.py gives
freed memory back to the machine; tracing.py traces by OpenTelemetry. process_manager.py removes the control ports of BentoML's
process manager, so that no local user can command it. crash_points.py lets a test kill a process at a named point.
"""
