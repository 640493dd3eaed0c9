"""Accounts: signing in, refreshing, device tokens and health, and the page, as a Starlette application.

These are not the hot routes: a password check costs tens of milliseconds anyway.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from upwell import __version__
from upwell.edge.fault import fault_of
from upwell.edge.page import PATH, live_page
from upwell.engine.catalog import Role, User
from upwell.engine.view import Publication
from upwell.errors import AuthenticationFailed, UpwellError
from upwell.protocol.messages import (
    AuthFault,
    HealthResponse,
    LoginRequest,
    LoginResponse,
    MeResponse,
    UserBody,
)
from upwell.protocol.sync import DeviceTokenRequest, DeviceTokenResponse
from upwell.session.auth import Authenticator, Login

ACCESS_COOKIE = "kalamdb_auth"
REFRESH_COOKIE = "kalamdb_refresh"
DEVICE_CHARS_MAX = 256
BODY_BYTES_MAX = 64 * 1024
T = TypeVar("T")


class Accounts:
    """Handlers of the account routes; `slow` runs the password checks."""

    def __init__(self, authenticator: Authenticator, publication: Publication, slow: Executor) -> None:
        self._authenticator = authenticator
        self._publication = publication
        self._slow = slow

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health, methods=["GET"]),
                Route("/livez", self.health, methods=["GET"]),
                Route("/readyz", self.ready, methods=["GET"]),
                Route("/v1/api/healthcheck", self.health, methods=["GET"]),
                Route("/v1/api/auth/login", self.login, methods=["POST"]),
                Route("/v1/api/auth/refresh", self.refresh, methods=["POST"]),
                Route("/v1/api/auth/logout", self.logout, methods=["POST"]),
                Route("/v1/api/auth/me", self.me, methods=["GET"]),
                Route("/v1/api/auth/device", self.device, methods=["POST"]),
                Route(PATH, live_page, methods=["GET"]),
            ],
            exception_handlers={404: _not_found, 405: _not_allowed, UpwellError: _failed},
        )

    async def health(self, request: Request) -> Response:
        status = "healthy" if self._publication.failure is None else "read_only"
        return _json(HealthResponse(status, __version__, "v1", __version__))

    async def ready(self, request: Request) -> Response:
        """Ready is who can write."""
        failure = self._publication.failure
        if failure is not None:
            return _json(AuthFault("read_only", str(failure)), 503)
        return await self.health(request)

    async def login(self, request: Request) -> Response:
        body = await _body(request, LoginRequest)
        if isinstance(body, Response):
            return body
        if not body.name:
            return _json(AuthFault("bad_request", "the field 'user' is missing"), 400)
        user = self._publication.view.catalog.users.get(body.name)
        if user is not None and user.name == "root" and user.password_hash is None and not body.password:
            return _json(AuthFault("setup_required", "root has no password; set UPWELL_ROOT_PASSWORD"), 428)
        check = partial(self._authenticator.check_password, user, body.password)
        return self._logged_in(await self._in_thread(check))

    async def refresh(self, request: Request) -> Response:
        cookie = request.cookies.get(REFRESH_COOKIE)
        header = f"Bearer {cookie}" if cookie else request.headers.get("authorization")
        return self._logged_in(self._authenticator.refresh_user(header, self._publication.view.catalog))

    async def logout(self, request: Request) -> Response:
        response = Response(b'{"message":"Logged out successfully"}', media_type="application/json")
        response.delete_cookie(ACCESS_COOKIE)
        response.delete_cookie(REFRESH_COOKIE)
        return response

    async def me(self, request: Request) -> Response:
        cookie = request.cookies.get(ACCESS_COOKIE)
        header = request.headers.get("authorization") or (f"Bearer {cookie}" if cookie else None)
        catalog = self._publication.view.catalog
        user = catalog.users[self._authenticator.principal(header, catalog).user]
        return _json(MeResponse(_user_body(user), _is_admin(user)))

    async def device(self, request: Request) -> Response:
        """Give a logged-in user a token of one device, which opens the device endpoints only."""
        catalog = self._publication.view.catalog
        principal = self._authenticator.principal(request.headers.get("authorization"), catalog)
        if principal.role is not Role.USER:
            return _json(AuthFault("forbidden", "device tokens are for accounts of role user"), 403)
        body = await _body(request, DeviceTokenRequest)
        if isinstance(body, Response):
            return body
        if not 0 < len(body.device) <= DEVICE_CHARS_MAX:
            return _json(AuthFault("bad_request", f"'device' has 1..{DEVICE_CHARS_MAX} characters"), 400)
        token = self._authenticator.device_token(principal.user, body.device)
        lifetime = token.expires_at_s - self._authenticator.now_s()
        return _json(
            DeviceTokenResponse(
                token=token.text, expires_in=lifetime, user=principal.user, device=body.device
            )
        )

    def _logged_in(self, user: User) -> Response:
        login = self._authenticator.log_in(user)
        response = _json(_login_body(login))
        for name, token in ((ACCESS_COOKIE, login.access), (REFRESH_COOKIE, login.refresh)):
            response.set_cookie(name, token.text, httponly=True, samesite="strict", path="/")
        return response

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._slow, call)


async def _body(request: Request, kind: type[T]) -> T | Response:
    chunks = b""
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > BODY_BYTES_MAX:
            return _json(AuthFault("bad_request", f"body larger than {BODY_BYTES_MAX} bytes"), 413)
    try:
        return msgspec.json.decode(chunks, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _json(AuthFault("bad_request", f"invalid JSON: {error}"), 400)


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


def _json(body: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


async def _not_found(request: Request, error: Exception) -> Response:
    return _json(AuthFault("not_found", f"there is nothing at {request.url.path}"), 404)


async def _not_allowed(request: Request, error: Exception) -> Response:
    return _json(AuthFault("method_not_allowed", f"{request.method} is not for {request.url.path}"), 405)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, UpwellError), "registered for domain errors"
    if isinstance(error, AuthenticationFailed):
        return _json(AuthFault("unauthorized", str(error)), 401)
    fault = fault_of(error, is_admin=False)
    return _json(AuthFault(fault.code.lower(), fault.message), fault.status)
