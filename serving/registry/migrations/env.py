"""Alembic's entry: runs the versions on the connection, and in the transaction, that `Database.migrate` passes in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
