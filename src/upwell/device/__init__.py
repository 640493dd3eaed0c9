"""The device SDK: an app's own SQLite file, offline first, in sync with an Upwell server.

with Device.open("app.sqlite", schema="app", tables=["users", "posts"]) as device:
    device.connection.execute("INSERT INTO users …")     # captured, online or not
    device.sign_in("http://127.0.0.1:8080", "ada", password="…")
    device.start()                                        # from now on it syncs by itself
    device.wait_until_synced(timeout_s=10)

On an event loop the same is `async with AsyncDevice.open(...) as device`, with every call awaited.
"""

from upwell.device.asynchronous import AsyncDevice
from upwell.device.conflict import Conflict, Resolver, client_wins, server_wins
from upwell.device.device import Device
from upwell.device.failures import (
    AnswerRefused,
    DeviceError,
    FileRefused,
    NotSignedIn,
    NotSynced,
    PendingChanges,
    RequestRefused,
    TableRefused,
    Unreachable,
)
from upwell.device.pace import Pace
from upwell.device.report import (
    DeviceStatus,
    DownloadReport,
    HydrateReport,
    PendingChange,
    Progress,
    SyncReport,
    UploadReport,
)
from upwell.device.transport import (
    AsyncHttpTransport,
    AsyncStream,
    AsyncTransport,
    HttpTransport,
    Request,
    Response,
    Stream,
    Transport,
)

__all__ = [
    "AnswerRefused",
    "AsyncDevice",
    "AsyncHttpTransport",
    "AsyncStream",
    "AsyncTransport",
    "Conflict",
    "Device",
    "DeviceError",
    "DeviceStatus",
    "DownloadReport",
    "FileRefused",
    "HttpTransport",
    "HydrateReport",
    "NotSignedIn",
    "NotSynced",
    "Pace",
    "PendingChange",
    "PendingChanges",
    "Progress",
    "Request",
    "RequestRefused",
    "Resolver",
    "Response",
    "Stream",
    "SyncReport",
    "TableRefused",
    "Transport",
    "Unreachable",
    "UploadReport",
    "client_wins",
    "server_wins",
]
