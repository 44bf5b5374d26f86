"""`python -m ratchet_loop` is the `ratchet` command."""

from .command import main

main()
