"""Ratchet's serving process as an installed package; pyproject.toml beside it maps the application's folders into it."""
