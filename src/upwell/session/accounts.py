"""Accounts: the statements about users."""

from dataclasses import dataclass
from functools import partial

from upwell.clock import Clock
from upwell.engine.catalog import Role, User
from upwell.engine.schema import Schema
from upwell.errors import InvalidOperation
from upwell.feeds.cursor import Growth
from upwell.session.auth import Authenticator, refuse_password
from upwell.session.call import Call
from upwell.session.outcome import Message
from upwell.session.policy import require_admin
from upwell.session.threads import SlowThreads
from upwell.sql.statements import CreateUser


@dataclass(frozen=True, slots=True)
class Accounts:
    """Runs statements about users."""

    schema: Schema
    authenticator: Authenticator
    growth: Growth
    slow: SlowThreads
    clock: Clock

    async def create(self, call: Call, statement: CreateUser) -> Message:
        require_admin(call.principal, "user management")
        if statement.role is Role.SYSTEM and call.principal.role is not Role.SYSTEM:
            raise InvalidOperation("only role system can create users of role system")
        password_hash = None
        if statement.password is not None:
            refuse_password(statement.password)
            password_hash = await self.slow.run(partial(self.authenticator.hash_password, statement.password))
        now = self.clock.now_us()
        user = User(statement.name, statement.role, password_hash, statement.email, "password", now, now)
        await self.growth.reached(self.schema.create_user(user))
        return Message(f"User '{statement.name}' created")
