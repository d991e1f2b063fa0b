"""Several processes: the process group, gathering with a gradient, the ring, and the loss over all of them."""

from .gather import gather_ids, gather_rows
from .processes import is_main, join_processes, rank, wait_for_all, world_size

__all__ = ["gather_ids", "gather_rows", "is_main", "join_processes", "rank", "wait_for_all", "world_size"]
