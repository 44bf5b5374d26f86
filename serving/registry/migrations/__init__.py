"""Migrations of the registry's schema, applied by `Registry.migrate` in order."""
