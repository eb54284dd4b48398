"""The registry of advisory locks.

Two key spaces of PostgreSQL: the one-integer form is for namespaces alone (key = ns_id); everything else uses
the two-integer form with a class from here. Within a transaction the order is always: shared slot locks,
ascending; namespace locks, ascending; rows in key order.
"""

SLOT_LOCK_CLASS = 1
"""(class, slot) on the shard that holds the slot: shared by every write, exclusive for a fence."""
MIGRATION_LOCK_CLASS = 2
"""(class, 0) in the directory: one migration, or one set of moves, at a time."""
SETUP_LOCK_CLASS = 3
"""(class, 0) in the directory: creating the cluster's records."""
MOVE_LOCK_CLASS = 4
"""(class, move id) in the directory: the runner of a move, one at a time; held by its session."""
GATE_LOCK_CLASS = 5
"""(class, gate) on a shard: held by a comparison, waited for by the worker that applies a move's stream."""
MAP_LOCK_CLASS = 6
"""(class, 0) in the directory: recording a move or a pin, so that what is checked still holds."""
