"""`python -m services.cli` is the command line."""

from services.cli.main import main

main()
