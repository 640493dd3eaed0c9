"""Accounts: the statements about users, the first set-up, and the sign-in by password.

Law: nobody makes, changes or drops an account above their own role, nor raises themselves; every change has
its entry in the audit log, without the password.
"""

from dataclasses import dataclass, replace
from functools import partial

from upwell.clock import Clock
from upwell.engine.catalog import Role, User
from upwell.engine.schema import Schema
from upwell.engine.view import Publication
from upwell.errors import AuthenticationFailed, InvalidOperation, NotFound
from upwell.feeds.cursor import Growth
from upwell.ids import Seq
from upwell.session.audit import AuditLog
from upwell.session.auth import Authenticator
from upwell.session.call import Call
from upwell.session.engine import Engine
from upwell.session.outcome import Message
from upwell.session.password import refuse_password
from upwell.session.policy import require_account, require_admin
from upwell.session.signin import SignIns
from upwell.session.threads import SlowThreads
from upwell.sql.statements import AlterUser, CreateUser, DropUser

ROOT = "root"
REDACTED = "[REDACTED]"


@dataclass(frozen=True, slots=True)
class Accounts:
    """Runs statements about users."""

    schema: Schema
    authenticator: Authenticator
    audit: AuditLog
    sign_ins: SignIns
    growth: Growth
    slow: SlowThreads
    clock: Clock

    async def run(self, call: Call, statement: CreateUser | AlterUser | DropUser) -> Message:
        """Run a statement about an account; return when it is durable, with its audit entry."""
        match statement:
            case CreateUser():
                return await self._create(call, statement)
            case AlterUser():
                return await self._alter(call, statement)
            case DropUser():
                return await self._drop(call, statement)

    async def _create(self, call: Call, statement: CreateUser) -> Message:
        require_admin(call.principal, "user management")
        require_account(call.principal, statement.role)
        password_hash = await self._hashed(statement.password)
        now = self.clock.now_us()
        details = {"role": statement.role.value, "auth_type": statement.auth_type, "email": statement.email}
        if statement.password is not None:
            details["password"] = REDACTED
        seq = self._noted(call, "CREATE_USER", statement.name, details).create_user(
            User(
                statement.name, statement.role, password_hash, statement.email, statement.auth_type, now, now,
                statement.auth_data,
            )
        )  # fmt: skip
        return await self._done(seq, statement.name, "created")

    async def _alter(self, call: Call, statement: AlterUser) -> Message:
        self._require_change(call, statement)
        password_hash = await self._hashed(statement.password)
        now = self.clock.now_us()

        def changed(user: User) -> User:
            # Judged anew: what the hash took may have been enough for somebody to raise the account.
            require_account(call.principal, user.role)
            return replace(
                user,
                role=statement.role or user.role,
                password_hash=password_hash or user.password_hash,
                email=user.email if statement.email is None else statement.email or None,
                updated_at_us=now,
                era=user.era + (password_hash is not None),
                era_began_us=user.era_began_us if password_hash is None else now,
            )

        details: dict[str, str | None] = {}
        if statement.password is not None:
            details["password"] = REDACTED
        if statement.role is not None:
            details["role"] = statement.role.value
        if statement.email is not None:
            details["email"] = statement.email
        seq = self._noted(call, "ALTER_USER", statement.name, details).alter_user(statement.name, changed)
        if statement.password is not None and statement.name != call.principal.user:
            seq = self.sign_ins.unlock(statement.name)
        return await self._done(seq, statement.name, "updated")

    def _require_change(self, call: Call, statement: AlterUser) -> None:
        principal = call.principal
        if statement.role is not None:
            require_admin(principal, "user management: Only admins can change roles")
            require_account(principal, statement.role)
            if statement.name == ROOT:
                raise InvalidOperation("root keeps role system")
        elif statement.name != principal.user:
            require_admin(
                principal, "user management: Only admins can change other users' passwords or e-mail"
            )
        user = self.schema.find_user(statement.name)
        if user is None:
            raise NotFound(f"User '{statement.name}' not found")
        require_account(principal, user.role)
        if statement.password is not None and user.auth_type == "oauth":
            raise InvalidOperation(f"User '{user.name}' signs in by OAuth and has no password")

    async def _drop(self, call: Call, statement: DropUser) -> Message:
        require_admin(call.principal, "user management")
        name = statement.name
        if name in (ROOT, call.principal.user):
            who = "root" if name == ROOT else "your own account"
            raise InvalidOperation(f"{who} can't be dropped")
        if self.schema.find_user(name) is None:
            if not statement.if_exists:
                raise NotFound(f"User '{name}' not found")
            await self.growth.reached(self.schema.last_seq)
            return Message(f"User '{name}' does not exist (skipped)")
        now = self.clock.now_us()

        def dropped(user: User) -> User:
            require_account(call.principal, user.role)
            return replace(user, password_hash=None, deleted_at_us=now, updated_at_us=now)

        self._noted(call, "DROP_USER", name, {}).alter_user(name, dropped)
        return await self._done(self.sign_ins.unlock(name), name, "dropped (soft delete)")

    async def _hashed(self, password: str | None) -> str | None:
        if password is None:
            return None
        refuse_password(password, is_strict=self.authenticator.is_strict)
        return await self.slow.run(partial(self.authenticator.hash_password, password))

    def _noted(self, call: Call, action: str, name: str, details: dict[str, str | None]) -> Schema:
        return self.schema.noted(self.audit.note(call.principal.user, action, name, details=details))

    async def _done(self, seq: Seq, name: str, done: str) -> Message:
        await self.growth.reached(seq)
        return Message(f"User '{name}' {done}")


def provisioned(engine: Engine, user: User) -> User:
    """Return the account of somebody whom another issuer vouches for, made if need be."""
    details = {"role": user.role.value, "auth_type": user.auth_type, "email": user.email}
    note = engine.audit.note(user.name, "CREATE_USER", user.name, details=details)
    return engine.schema.noted(note).provision_user(user)


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Lets people in by password, and sets a new server up. Its methods block: call them in threads."""

    schema: Schema
    authenticator: Authenticator
    sign_ins: SignIns
    audit: AuditLog
    publication: Publication
    clock: Clock

    def log_in(self, name: str, password: str) -> User:
        """Return the account that name and password open; raise `AuthenticationFailed`."""
        user = self.publication.view.catalog.users.get(name)
        if user is not None:
            self.sign_ins.refuse_locked(name)
        try:
            self.authenticator.check_password(user, password)
        except AuthenticationFailed:
            if user is not None:
                self.publication.wait(self.sign_ins.failed(name))
            raise
        assert user is not None, "nobody's password is never right"
        seq = self.sign_ins.succeeded(name)
        if user.role in (Role.DBA, Role.SYSTEM):
            seq = self.audit.append(name, "LOGIN", name)
        self.publication.wait(seq)
        return user

    @property
    def needs_setup(self) -> bool:
        """Whether root has no password yet."""
        root = self.publication.view.catalog.users.get(ROOT)
        return root is None or root.password_hash is None

    def set_up(self, name: str, password: str, root_password: str, email: str | None) -> User:
        """Give root its password and create the first account of role dba, in one commit.

        Raises `AlreadyExists` if the name is taken, `InvalidOperation` if somebody was faster.
        """
        now = self.clock.now_us()
        root_hash = self.authenticator.hash_password(root_password)
        user = User(name, Role.DBA, self.authenticator.hash_password(password), email, "password", now, now)
        details = {"role": user.role.value, "password": REDACTED}
        schema = self.schema.noted(self.audit.note(ROOT, "CREATE_USER", name, details=details))
        seq = schema.set_up(user, lambda root: replace(root, password_hash=root_hash, updated_at_us=now))
        self.publication.wait(seq)
        return user
