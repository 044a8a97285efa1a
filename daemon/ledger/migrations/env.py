"""Alembic's environment: migrations run inside the transaction that `database.migrate` hands in."""

from alembic import context

from daemon.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
