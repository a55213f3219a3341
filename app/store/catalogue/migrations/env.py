"""Run by alembic for every command: on the connection it is given, inside whatever transaction that has begun."""

from alembic import context

from app.store.catalogue.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
