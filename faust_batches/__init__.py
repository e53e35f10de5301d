"""Faust agents that get batches, and tables that count every record exactly once.

What an application can rely on:

1. A batch is a run of records of one partition. A batch agent gets the batches of a partition in order, one at a time.
2. Only the end of an unbroken chain of finished batches is committed. Unfinished batches are read again after an error,
   a crash, a rebalance or a seek back: every record is handled at least once.
3. A batch is finished when its handler returns. So the handler must finish all work before it returns, and the work
   must be safe to repeat: insert a document under the record's own id, store the last applied offset in each value.
4. `Table.write` returns when the rows are in RocksDB and Kafka has acknowledged their changelog records. Of two values
   of a key the one with the larger (era, offset) stays, in any order of arrival, also in a recovery.
5. `Batch.turn` lets only the next batch of the chain touch a partition's tables, one at a time, also when Faust
   restarts an actor while the old one still runs.
6. Nothing is sent while the lease on the partition may have expired: a worker that wakes up from a freeze sends nothing
   after its successor has started.

A handler counts every record once if it skips records whose offset is not larger than the value's, and writes the
values back in its turn. See README.md in this folder.
"""

from .app import App
from .batch import Batch
from .errors import BatchError, PartitionLost, Unavailable
from .fetching import bear
from .once import SendOnce
from .outage import Outage, retrying
from .position import TOTALS_KEY, Position, position_of
from .producer import acknowledged
from .table import Table
from .troubles import Trouble, Troubles
from .unreadable import Unreadable, UnreadableRecord

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
    "Trouble",
    "Troubles",
    "Unavailable",
    "Unreadable",
    "UnreadableRecord",
    "acknowledged",
    "bear",
    "position_of",
    "retrying",
]
