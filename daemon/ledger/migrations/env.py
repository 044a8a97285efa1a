"""Alembic's environment: migrations run on the connection that `daemon.ledger` hands in, inside its transaction."""

from alembic import context

from daemon.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
