"""Storages: CREATE, ALTER, DROP and CHECK of storages, with their rights and messages."""

import asyncio
import json
import logging
from dataclasses import dataclass, field, replace
from functools import partial

from upwell.clock import Clock
from upwell.engine.restore import RESTORED
from upwell.engine.storages import StorageSchema
from upwell.errors import NotFound, UpwellError
from upwell.feeds.cursor import Growth
from upwell.logs import fields
from upwell.session.audit import AuditLog
from upwell.session.call import Call
from upwell.session.outcome import Answer, Message
from upwell.session.policy import require_admin
from upwell.session.system import made
from upwell.session.threads import SlowThreads
from upwell.sql.maintenance import AlterStorage, CheckStorage, CreateStorage, DropStorage
from upwell.storage.definition import MARKER, Storage, checked, read_settings
from upwell.storage.storages import Storages
from upwell.storage.volume import cause_of
from upwell.types import SqlType

log = logging.getLogger("upwell.storages")

AREA = "storage management"
CLEANUP_POLL_S = 0.1
CLEANUP_POLLS_MAX = 100
"""How often DROP STORAGE looks whether the tables that were dropped before it have been cleaned up."""

StorageStatement = CreateStorage | AlterStorage | DropStorage | CheckStorage

_LAYOUT = [
    ("storage_id", SqlType.TEXT), ("status", SqlType.TEXT), ("readable", SqlType.BOOLEAN),
    ("writable", SqlType.BOOLEAN), ("listable", SqlType.BOOLEAN), ("deletable", SqlType.BOOLEAN),
    ("latency_ms", SqlType.BIGINT), ("total_bytes", SqlType.BIGINT), ("used_bytes", SqlType.BIGINT),
    ("error", SqlType.TEXT), ("tested_at", SqlType.TIMESTAMP),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class StorageDefiner:
    """Runs statements about storages; what asks a storage itself runs in a thread."""

    schema: StorageSchema
    storages: Storages
    audit: AuditLog
    growth: Growth
    slow: SlowThreads
    clock: Clock
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Who gives a place up looks first whether a storage is there: none comes between the two."""

    async def run(self, call: Call, statement: StorageStatement) -> Message | Answer:
        """Run a statement; return when what it did is durable and visible."""
        require_admin(call.principal, AREA)
        match statement:
            case CreateStorage(storage):
                async with self.turn:
                    return await self._create(call, storage)
            case AlterStorage():
                async with self.turn:
                    return await self._alter(call, statement)
            case DropStorage(name, if_exists):
                return await self._drop(call, name, if_exists=if_exists)
            case CheckStorage(name, is_extended):
                return await self._check(name, is_extended=is_extended)

    async def _create(self, call: Call, storage: Storage) -> Message:
        self.schema.require_new(storage)
        announce = partial(self.schema.announce, storage)
        try:
            await self.slow.run(partial(self.storages.create, storage, self.schema.storages, announce))
            self._noted(call, "CREATE_STORAGE", storage.id).create(storage)
        except UpwellError:
            await self.slow.run(partial(self._vacate, storage.id))
            raise
        return await self._done(f"Storage '{storage.id}' created successfully")

    async def _alter(self, call: Call, statement: AlterStorage) -> Message:
        name, change = statement.name, partial(_altered, statement)
        altered = change(self.schema.get(name))
        if statement.config is not None or statement.credentials is not None:
            await self.slow.run(partial(self.storages.create, altered, self.schema.storages))
        else:
            await self.slow.run(partial(self.storages.refuse_meeting, altered, self.schema.storages))
        self._noted(call, "ALTER_STORAGE", name).alter(name, change)
        return await self._done(f"Storage '{name}' altered successfully")

    async def _drop(self, call: Call, name: str, *, if_exists: bool) -> Message:
        for _ in range(CLEANUP_POLLS_MAX):
            if not await self.slow.run(partial(self.schema.is_being_cleaned, name)):
                break
            await asyncio.sleep(CLEANUP_POLL_S)
        async with self.turn:
            drop = self._noted(call, "DROP_STORAGE", name).drop
            dropped = await self.slow.run(partial(drop, name, if_exists=if_exists))
            told = "does not exist (skipped)" if dropped is None else "dropped successfully"
            done = await self._done(f"Storage '{name}' {told}")
            await self.slow.run(partial(self._vacate, name))
        return done

    async def vacate(self) -> None:
        """Let others use the places that an earlier run of the server gave up, but couldn't say so."""
        async with self.turn:
            await self.slow.run(self._vacate)

    def _vacate(self, name: str | None = None) -> None:
        """Remove the markers of places that nobody has any more; what can't be reached stays noted."""
        if (self.storages.root.parent / RESTORED).exists():
            return  # the next start may bring files there
        for storage in self.schema.vacant(name):
            try:
                if self.storages.release(storage, self.schema.storages):
                    self.schema.forget_vacant(storage)
            except (OSError, UpwellError) as error:
                log.warning(
                    "The place of a dropped storage can't be given up; the next start, or DROP STORAGE IF "
                    "EXISTS, tries again, or remove its marker to let another server have it",
                    extra=fields(
                        storage=storage.id, marker=f"{storage.base}/{MARKER}", reason=cause_of(error)
                    ),
                )

    async def _check(self, name: str, *, is_extended: bool) -> Answer:
        storage = self.growth.view.catalog.storages.get(name)
        if storage is None:
            raise NotFound(f"Storage '{name}' not found; SHOW STORAGES lists what there is")
        began_us = self.clock.now_us()
        found = await self.slow.run(partial(self.storages.check, storage, count_bytes=is_extended))
        ended_us = self.clock.now_us()
        row = (
            name, found.status, found.readable, found.writable, found.listable, found.deletable,
            (ended_us - began_us) // 1000, found.total_bytes, found.used_bytes, found.error, ended_us,
        )  # fmt: skip
        return Answer(made(_LAYOUT, [row]))

    def _noted(self, call: Call, action: str, name: str) -> StorageSchema:
        return self.schema.noted(self.audit.note(call.principal.user, action, name))

    async def _done(self, text: str) -> Message:
        """Answer when all is durable and visible; nothing to do is an answer about the newest state, too."""
        await self.growth.reached(self.schema.committer.last_seq)
        return Message(text)


def _altered(statement: AlterStorage, storage: Storage) -> Storage:
    """Return the definition with what the statement gives; CONFIG and CREDENTIALS each replace the whole."""
    written = statement.config or json.dumps(dict(storage.config))
    config, credentials = read_settings(storage.type, written, statement.credentials)
    return checked(
        replace(
            storage,
            name=_given(statement.new_name, storage.name),
            description=storage.description if statement.description is None else statement.description,
            shared_template=_given(statement.shared_template, storage.shared_template),
            user_template=_given(statement.user_template, storage.user_template),
            config=config,
            credentials=credentials or storage.credentials,
        )
    )


def _given(new: str | None, old: str) -> str:
    return old if new is None else new
