"""Environment that alembic runs for every command: on the connection it is given, inside the transaction begun there."""

from alembic import context

from app.store.catalogue import tables, tenant_tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=[tables.metadata, tenant_tables.metadata],
)
context.run_migrations()
