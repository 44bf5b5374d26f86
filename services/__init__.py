"""Background processes and the command line."""
