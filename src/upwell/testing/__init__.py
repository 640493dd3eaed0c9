"""The one test kit: real processes, faults on purpose, an independent reader, models, acknowledged writes.

Law: nothing that is imported here uses the server's own code to judge the server. It needs nothing but the
base install; `cold` loads pyarrow when it first opens a file. By their own names there are also

    wire         the SQL wire by hand, for tests written from the contract
    sync_world   devices that speak the sync wire by hand, and phones whose wire can be disturbed
    sync_server  a sync server in memory, for tests of the device SDK
    sync_watch   the same with its watch stream, for devices that sync in the background
    paper        the commands and programs of a Markdown file, run

and, which need the server's libraries,

    stock        a stock client of go-oversync with its weaknesses, on a file of its own (`stock_file`)
    embedded     a whole engine inside the test's process
    database     a model of tables, definitions and changes; `phrases` and `writer` make random statements
    inprocess    device sync on an `embedded`: faults on the line, crashes of the server, killed apps
    ledger       what a fleet of such apps wrote and where it went: the laws of sync
"""

from upwell.testing import cold
from upwell.testing.acks import ABSENT, AckLog
from upwell.testing.faults import (
    DroppingTransport,
    FailingFiles,
    FailOnce,
    PointActions,
    disk_full,
    each_fault,
)
from upwell.testing.model import DuplicateKey, ModelError, NullKey, TableModel
from upwell.testing.process import ReservedPort, ServerFailed, ServerProcess
from upwell.testing.wait import WaitFailed, wait_until

__all__ = [
    "ABSENT",
    "AckLog",
    "DroppingTransport",
    "DuplicateKey",
    "FailOnce",
    "FailingFiles",
    "ModelError",
    "NullKey",
    "PointActions",
    "ReservedPort",
    "ServerFailed",
    "ServerProcess",
    "TableModel",
    "WaitFailed",
    "cold",
    "disk_full",
    "each_fault",
    "wait_until",
]
