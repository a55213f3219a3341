"""Environment that alembic runs for every command: on the connection it is given, inside the transaction begun there."""

from alembic import context

from app.store.catalogue.tenant_tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
