"""Faust agents that get batches, and tables that count every record exactly once.

What an application can rely on:

1. A batch is a run of records of one partition. A batch agent gets the batches of a partition in order, one at a time.
2. Only the end of an unbroken chain of finished batches is committed. What is not finished comes again, after an error,
   a crash, a rebalance or a step back: every record is handled at least once.
3. A batch is finished when its handler returns. So the handler finishes all its work before it returns, and makes it
   safe to repeat: a document inserted under the record's own id, a value that carries the offset last applied.
4. `Table.write` returns when the rows are in RocksDB and Kafka has acknowledged their changelog records. Of two values
   of a key the one with the larger (era, offset) stays, in a recovery too, whatever order they come in.
5. `Batch.turn` lets only the next batch of the chain touch a partition's tables, one at a time, also when Faust
   restarts an actor beside its predecessor.
6. Nothing is sent while the lease on the partition may have run out: what a worker had in hand when it fell asleep
   does not follow its successor's records.

A handler that counts a record only if its offset is larger than the value's, and writes the values back in its turn,
has counted every record once. See README.md in this folder.
"""

from .app import App
from .consumer import Batch
from .errors import BatchError, PartitionLost, Unavailable
from .once import SendOnce
from .outage import Outage, retrying
from .position import TOTALS_KEY, Position, position_of
from .producer import acknowledged
from .table import Table

__all__ = [
    "TOTALS_KEY",
    "App",
    "Batch",
    "BatchError",
    "Outage",
    "PartitionLost",
    "Position",
    "SendOnce",
    "Table",
    "Unavailable",
    "acknowledged",
    "position_of",
    "retrying",
]
