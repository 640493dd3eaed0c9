"""The device SDK: an app's own SQLite file, offline first, in sync with an Upwell server.

with Device.open("app.sqlite", schema="app", tables=["users", "posts"]) as device:
    device.connection.execute("INSERT INTO users …")     # captured, online or not
    device.sign_in("http://127.0.0.1:8080", "ada", password="…")
    device.sync()
"""

from upwell.device.conflict import Conflict, Resolver, client_wins, server_wins
from upwell.device.device import Device
from upwell.device.failures import (
    AnswerRefused,
    DeviceError,
    FileRefused,
    NotSignedIn,
    PendingChanges,
    RequestRefused,
    TableRefused,
    Unreachable,
)
from upwell.device.report import (
    DeviceStatus,
    DownloadReport,
    HydrateReport,
    PendingChange,
    Progress,
    SyncReport,
    UploadReport,
)
from upwell.device.transport import HttpTransport, Request, Response, Transport

__all__ = [
    "AnswerRefused",
    "Conflict",
    "Device",
    "DeviceError",
    "DeviceStatus",
    "DownloadReport",
    "FileRefused",
    "HttpTransport",
    "HydrateReport",
    "NotSignedIn",
    "PendingChange",
    "PendingChanges",
    "Progress",
    "Request",
    "RequestRefused",
    "Resolver",
    "Response",
    "SyncReport",
    "TableRefused",
    "Transport",
    "Unreachable",
    "UploadReport",
    "client_wins",
    "server_wins",
]
