"""
How alembic reaches the database: by the connection that ``store.schema.migrate`` hands over, in
whose transaction everything happens.
"""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
