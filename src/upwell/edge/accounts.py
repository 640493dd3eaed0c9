"""Accounts: set-up, signing in, refreshing, device tokens, health and the page, as a Starlette application.

These are not the hot routes: a password check costs tens of milliseconds anyway. Protocol: contract, 1.7.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from upwell.config import Config
from upwell.edge.allowance import RateLimit
from upwell.edge.fault import fault_of
from upwell.edge.health import HEALTH_PATHS, Health
from upwell.edge.json import answer, read_struct
from upwell.edge.openapi import ROUTE as OPENAPI
from upwell.edge.page import PATH, live_page
from upwell.edge.peer import address, is_local
from upwell.engine.catalog import Role, User
from upwell.engine.view import Publication
from upwell.errors import AlreadyExists, AuthenticationFailed, InvalidOperation, UpwellError
from upwell.protocol.messages import (
    AuthFault,
    LoginRequest,
    LoginResponse,
    MeResponse,
    MessageResponse,
    SetupRequest,
    SetupResponse,
    SetupStatus,
    UserBody,
)
from upwell.protocol.sync import DeviceTokenRequest, DeviceTokenResponse
from upwell.session.accounts import ROOT, Doorkeeper
from upwell.session.auth import DEVICE_CHARS_MAX, Authenticator, Login
from upwell.session.password import find_missing, find_weakness

AUTH = "/v1/api/auth"
PATHS = (*HEALTH_PATHS, *(f"{AUTH}/{name}" for name in
         ("status", "setup", "login", "refresh", "logout", "me", "device")))  # fmt: skip
ACCESS_COOKIE = "kalamdb_auth"
REFRESH_COOKIE = "kalamdb_refresh"
EMAIL_CHARS_MAX = 254
T = TypeVar("T")


class Accounts:
    """Handlers of the account routes; `slow` runs the password checks."""

    def __init__(
        self,
        doorkeeper: Doorkeeper,
        authenticator: Authenticator,
        publication: Publication,
        slow: Executor,
        config: Config,
        now_s: Callable[[], float],
        more: Sequence[Route] = (),
    ) -> None:
        self._more = more
        self._doorkeeper = doorkeeper
        self._authenticator = authenticator
        self._publication = publication
        self._slow = slow
        self._config = config
        self._attempts = RateLimit(config.auth_attempts_per_s_max, now_s)

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                *Health(self._publication, self._config).routes(),
                Route("/v1/api/auth/status", self.status, methods=["GET"]),
                Route("/v1/api/auth/setup", self.setup, methods=["POST"]),
                Route("/v1/api/auth/login", self.login, methods=["POST"]),
                Route("/v1/api/auth/refresh", self.refresh, methods=["POST"]),
                Route("/v1/api/auth/logout", self.logout, methods=["POST"]),
                Route("/v1/api/auth/me", self.me, methods=["GET"]),
                Route("/v1/api/auth/device", self.device, methods=["POST"]),
                Route(PATH, live_page, methods=["GET"]),
                OPENAPI,
                *self._more,
            ],
            exception_handlers={404: _not_found, 405: _not_allowed, UpwellError: _failed},
        )

    # Set-up

    async def status(self, request: Request) -> Response:
        refusal = self._setup_refusal(request)
        if refusal is not None:
            return refusal
        if self._doorkeeper.needs_setup:
            return answer(SetupStatus(True, "Server requires initial setup: POST /v1/api/auth/setup"))
        return answer(SetupStatus(False, "Server is configured and ready"))

    async def setup(self, request: Request) -> Response:
        refusal = self._setup_refusal(request) or self._rate_refusal(request)
        if refusal is not None:
            return refusal
        body = await read_struct(request, SetupRequest)
        if isinstance(body, Response):
            return body
        if not self._doorkeeper.needs_setup:
            return answer(_configured(), 409)
        fault = self._fault_in(body)
        if fault is not None:
            return answer(fault, 400)
        name = body.name or ""
        set_up = partial(self._doorkeeper.set_up, name, body.password, body.root_password, body.email)
        try:
            user = await self._in_thread(set_up)
        except AlreadyExists as error:
            return answer(AuthFault("user_exists", str(error)), 409)
        except InvalidOperation:
            return answer(_configured(), 409)
        text = (
            f"Server setup complete. Root password configured and DBA user '{name}' created. "
            "Please login to continue."
        )
        return answer(SetupResponse(_user_body(user), text))

    def _setup_refusal(self, request: Request) -> Response | None:
        if is_local(request.scope) or self._config.allow_remote_setup:
            return None
        text = "Access denied. The set-up is localhost-only; set allow_remote_setup to open it"
        return answer(AuthFault("forbidden", text), 403)

    def _fault_in(self, body: SetupRequest) -> AuthFault | None:
        if (
            not body.name
            or body.name == ROOT
            or not body.name.isprintable()
            or body.name != body.name.strip()
        ):
            return AuthFault("invalid_user", f"'user' names the first administrator, and isn't {ROOT}")
        if body.email is not None and len(body.email) > EMAIL_CHARS_MAX:
            return AuthFault("invalid_user", f"'email' has at most {EMAIL_CHARS_MAX} characters")
        for password in (body.password, body.root_password):
            weakness = find_weakness(password)
            if weakness is None and self._config.enforce_password_complexity:
                weakness = find_missing(password)
            if weakness is not None:
                return AuthFault("weak_password", weakness)
        return None

    # Signing in

    async def login(self, request: Request) -> Response:
        refusal = self._rate_refusal(request)
        if refusal is not None:
            return refusal
        body = await read_struct(request, LoginRequest)
        if isinstance(body, Response):
            return body
        if not body.name:
            return answer(AuthFault("bad_request", "the field 'user' is missing"), 400)
        if body.name == ROOT and not body.password and self._doorkeeper.needs_setup:
            text = "Server requires initial setup: root has no password yet. POST /v1/api/auth/setup"
            return answer(AuthFault("setup_required", text), 428)
        return self._logged_in(
            await self._in_thread(partial(self._doorkeeper.log_in, body.name, body.password))
        )

    async def refresh(self, request: Request) -> Response:
        refusal = self._rate_refusal(request)
        if refusal is not None:
            return refusal
        cookie = request.cookies.get(REFRESH_COOKIE)
        header = f"Bearer {cookie}" if cookie else request.headers.get("authorization")
        return self._logged_in(self._authenticator.refresh_user(header, self._publication.view.catalog))

    async def logout(self, request: Request) -> Response:
        response = answer(MessageResponse("Logged out successfully"))
        for name in (ACCESS_COOKIE, REFRESH_COOKIE):
            response.delete_cookie(
                name, path="/", secure=self._config.cookie_secure, httponly=True, samesite="strict"
            )
        return response

    async def me(self, request: Request) -> Response:
        cookie = request.cookies.get(ACCESS_COOKIE)
        header = request.headers.get("authorization") or (f"Bearer {cookie}" if cookie else None)
        catalog = self._publication.view.catalog
        # An outside token may have made the account just now.
        user = self._doorkeeper.schema.find_user(self._authenticator.principal(header, catalog).user)
        if user is None:
            raise AuthenticationFailed("INVALID_CREDENTIALS", "Invalid credentials")
        return answer(MeResponse(_user_body(user), _is_admin(user)))

    async def device(self, request: Request) -> Response:
        """Give a logged-in user a token of one device, which opens the device endpoints only."""
        catalog = self._publication.view.catalog
        principal = self._authenticator.principal(request.headers.get("authorization"), catalog)
        if principal.role is not Role.USER:
            return answer(AuthFault("forbidden", "device tokens are for accounts of role user"), 403)
        body = await read_struct(request, DeviceTokenRequest)
        if isinstance(body, Response):
            return body
        if not 0 < len(body.device) <= DEVICE_CHARS_MAX:
            return answer(AuthFault("bad_request", f"'device' has 1..{DEVICE_CHARS_MAX} characters"), 400)
        # As it was when its token was checked: meanwhile there may be another one of its name.
        account = catalog.users.get(principal.user)
        token = self._authenticator.device_token(principal.user, body.device, account=account)
        lifetime = token.expires_at_s - self._authenticator.now_s()
        return answer(
            DeviceTokenResponse(
                token=token.text, expires_in=lifetime, user=principal.user, device=body.device
            )
        )

    def _rate_refusal(self, request: Request) -> Response | None:
        if self._attempts.take(address(request.scope)):
            return None
        text = "Too many authentication attempts. Please retry shortly."
        return answer(AuthFault("rate_limited", text), 429)

    def _logged_in(self, user: User) -> Response:
        login = self._authenticator.log_in(user)
        response = answer(_login_body(login))
        for name, token in ((ACCESS_COOKIE, login.access), (REFRESH_COOKIE, login.refresh)):
            response.set_cookie(
                name,
                token.text,
                max_age=token.expires_at_s - self._authenticator.now_s(),
                path="/",
                secure=self._config.cookie_secure,
                httponly=True,
                samesite="strict",
            )
        return response

    async def _in_thread(self, call: Callable[[], T]) -> T:
        context = copy_context()  # the audit log names the address of who asked
        return await asyncio.get_running_loop().run_in_executor(self._slow, context.run, call)


def _configured() -> AuthFault:
    return AuthFault("already_configured", "the server is set up; sign in at /v1/api/auth/login")


def _login_body(login: Login) -> LoginResponse:
    return LoginResponse(
        _user_body(login.user),
        _is_admin(login.user),
        _moment(login.access.expires_at_s * 1_000_000),
        login.access.text,
        login.refresh.text,
        _moment(login.refresh.expires_at_s * 1_000_000),
    )


def _user_body(user: User) -> UserBody:
    return UserBody(
        id=user.name,
        role=user.role.value,
        email=user.email,
        created_at=_moment(user.created_at_us),
        updated_at=_moment(user.updated_at_us),
    )


def _is_admin(user: User) -> bool:
    return user.role in (Role.DBA, Role.SYSTEM)


def _moment(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat()


async def _not_found(request: Request, error: Exception) -> Response:
    return answer(AuthFault("not_found", f"there is nothing at {request.url.path}"), 404)


async def _not_allowed(request: Request, error: Exception) -> Response:
    return answer(AuthFault("method_not_allowed", f"{request.method} is not for {request.url.path}"), 405)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, UpwellError), "registered for domain errors"
    if isinstance(error, AuthenticationFailed):
        kind = "account_locked" if error.code == "ACCOUNT_LOCKED" else "unauthorized"
        return answer(AuthFault(kind, str(error)), 401)
    fault = fault_of(error, is_admin=False)
    return answer(AuthFault(fault.code.lower(), fault.message), fault.status)
