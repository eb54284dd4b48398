"""What both env.py do: run a tree's steps on the connection that the driver hands over."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy.schema import CreateSchema

from migrations import Tree
from sharding.tables import ByteChar


def has_type_changed(
    _context: MigrationContext,
    _inspected_column: object,
    _defined_column: object,
    inspected_type: sa.types.TypeEngine[Any],
    defined_type: sa.types.TypeEngine[Any],
) -> bool | None:
    """alembic's hook: whether a column differs from its definition; None leaves the answer to alembic."""
    if isinstance(defined_type, ByteChar):
        # SQLAlchemy reads "char" back as a string without a length.
        return not isinstance(inspected_type, sa.String) or inspected_type.length is not None
    return None


def run_tree(tree: Tree, metadata: Sequence[sa.MetaData]) -> None:
    """Bring the database of `config.attributes["connection"]` to the revision asked for.

    Tx: one transaction per step, so that what is done stays done when a later step fails.
    """
    connection = context.config.attributes["connection"]
    assert isinstance(connection, sa.Connection)
    schema = tree.version_schema
    if schema is not None:
        # Not IF NOT EXISTS alone: that needs the right to create schemas even when there is nothing to do.
        if schema not in sa.inspect(connection).get_schema_names():
            connection.execute(CreateSchema(schema, if_not_exists=True))
        connection.commit()
    context.configure(
        connection=connection,
        target_metadata=list(metadata),
        version_table_schema=schema,
        include_schemas=schema is not None,
        transaction_per_migration=True,
        compare_type=has_type_changed,
        compare_server_default=True,
        on_version_apply=context.config.attributes.get("on_version_apply"),
    )
    with context.begin_transaction():
        context.run_migrations()
