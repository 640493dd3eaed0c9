"""What can go wrong on a device, each with what to do about it.

Law: none of these loses a local change; what was pending before is pending after.
"""


class DeviceError(Exception):
    """Base of the device's failures."""


class TableRefused(DeviceError):
    """A table can't be synced as it is declared; the message says how to declare it."""


class FileRefused(DeviceError):
    """The SQLite file belongs to another user or source, or can't be used."""


class PendingChanges(DeviceError):
    """The file has changes that were not uploaded; upload them first."""


class NotSignedIn(DeviceError):
    """Call `sign_in` first."""


class Unreachable(DeviceError):
    """The server gave no answer; whether it got the request is unknown. Call again: nothing happens twice."""


class NotSynced(DeviceError):
    """Not everything was acknowledged and read in the time given; it stays pending. The message says why."""


class AnswerRefused(DeviceError):
    """The answer contradicts the protocol; nothing of it was stored."""


class RequestRefused(DeviceError):
    """The server answered with an error status; all local changes are kept."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
