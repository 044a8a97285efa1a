"""Storage commitment: reports that are stored and not yet committed, and their requests.

Digests of reports.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Migrate a ledger of the revision before."""
    with op.batch_alter_table("outbox") as table:
        table.add_column(sa.Column("digest", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("commit_attempts", sa.Integer(), nullable=False, server_default="0"))
        # SQLite's table is made anew without its check constraints, which Alembic cannot see there.
        if op.get_bind().dialect.name != "sqlite":
            table.drop_constraint(op.f("ck_outbox_state"), type_="check")
        table.create_check_constraint(op.f("ck_outbox_state"), "state IN ('queued', 'committing', 'stored', 'failed')")
    op.create_table(
        "commitments",
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("outbox_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(
            ["outbox_id"], ["outbox.id"], name=op.f("fk_commitments_outbox_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("transaction_uid", "outbox_id", name=op.f("pk_commitments")),
    )
    op.create_index("ix_commitments_outbox_id", "commitments", ["outbox_id"], unique=False)
