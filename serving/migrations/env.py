"""Alembic's entry: runs the versions on the connection that `Registry.migrate` passes in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
