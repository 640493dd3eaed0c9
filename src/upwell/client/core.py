"""Signing in and SQL without I/O: generators that yield HTTP requests and are sent the answers.

Law: a statement is sent once. It is repeated only when the server refused the token before looking at it,
after one new login; a lost answer is the caller's to judge.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec

from upwell.client.failures import AuthenticationFailed, ProtocolViolation, ServerError
from upwell.decodable import decodable
from upwell.protocol.codec import FrameMalformed, decode_body, encode
from upwell.protocol.messages import (
    AuthFault,
    ErrorBody,
    LoginRequest,
    LoginResponse,
    SqlRequest,
    SqlResponse,
)

_SQL_PATH = "/v1/api/sql"
_LOGIN_PATH = "/v1/api/auth/login"
_LIVE_PATH = "/v1/ws?compress=false"
_STALE_TOKEN = "TOKEN_EXPIRED"
_Body = TypeVar("_Body")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST to be made."""

    url: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back."""

    status: int
    body: bytes


class Account:
    """Who we are at which server: address, credentials and the access token in use."""

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        namespace: str | None = None,
    ) -> None:
        self.url = _http_url(url)
        self.user = user
        self.password = password
        self.token = token
        self.namespace = namespace
        self.token_is_new = False

    @property
    def live_url(self) -> str:
        """Where live queries connect to."""
        return "ws" + self.url.removeprefix("http") + _LIVE_PATH

    @property
    def may_login(self) -> bool:
        """Whether a new token can be had: there are a user and a password."""
        return self.user is not None and self.password is not None

    @property
    def headers(self) -> dict[str, str]:
        """The credentials as a header; none if there are none."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def login(self) -> Generator[HttpRequest, HttpAnswer, None]:
        """Exchange user and password for a token; raise `AuthenticationFailed` if they are refused."""
        assert self.password is not None, "login without a password"
        body = encode(LoginRequest(user=self.user, password=self.password))
        answer = yield HttpRequest(self.url + _LOGIN_PATH, {"Content-Type": "application/json"}, body)
        if answer.status != 200:
            _refuse_login(answer)
        self.token = _read(answer, LoginResponse).access_token
        self.token_is_new = True

    def ensure_token(self) -> Generator[HttpRequest, HttpAnswer, None]:
        """Log in if there is no token but a password."""
        if self.token is None and self.may_login:
            yield from self.login()

    def request(self, request: SqlRequest) -> Generator[HttpRequest, HttpAnswer, SqlResponse]:
        """Run one or several statements; raise `ServerError` if the server refuses."""
        body = encode(request)
        yield from self.ensure_token()
        answer = yield self._sql(body)
        if answer.status == 401 and self.may_login and _error(answer).code == _STALE_TOKEN:
            yield from self.login()
            answer = yield self._sql(body)
        return _read_response(answer)

    def stream(self, request: SqlRequest, media_type: str) -> HttpRequest:
        """Return the request of a result as a stream; `renew` says what an answer but 200 means."""
        asked = self._sql(encode(request))
        return HttpRequest(asked.url, {**asked.headers, "Accept": media_type}, asked.body)

    def renew(self, refused: HttpAnswer) -> Generator[HttpRequest, HttpAnswer, None]:
        """Log in anew if the token was too old; raise `ServerError` for any other refusal."""
        if not (refused.status == 401 and self.may_login and _error(refused).code == _STALE_TOKEN):
            _read_response(refused)
        yield from self.login()

    def _sql(self, body: bytes) -> HttpRequest:
        return HttpRequest(self.url + _SQL_PATH, {"Content-Type": "application/json", **self.headers}, body)


def _http_url(url: str) -> str:
    if "://" not in url:
        url = "http://" + url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"not a server address: {url!r} (expected http://host:port)")
    return url.rstrip("/")


def _read_response(answer: HttpAnswer) -> SqlResponse:
    if answer.status != 200:
        error = _error(answer)
        failure = AuthenticationFailed if answer.status == 401 else ServerError
        raise failure(answer.status, error.code, error.message, answer.body)
    response = _read(answer, SqlResponse)
    if response.status != "success":
        error = response.error or ErrorBody("UNKNOWN", "the server gave no reason")
        raise ServerError(answer.status, error.code, error.message, answer.body)
    return response


def _read(answer: HttpAnswer, body: type[_Body]) -> _Body:
    try:
        return decode_body(answer.body, body)
    except FrameMalformed as error:
        raise ProtocolViolation(
            f"HTTP {answer.status} with an answer that is not understood: {error}"
        ) from error


def _error(answer: HttpAnswer) -> ErrorBody:
    try:
        found = decode_body(answer.body, _Refusal).error
    except FrameMalformed:
        found = None
    return found or ErrorBody(f"HTTP_{answer.status}", answer.body[:200].decode(errors="replace"))


def _refuse_login(answer: HttpAnswer) -> NoReturn:
    try:
        fault = decode_body(answer.body, AuthFault)
    except FrameMalformed:
        fault = AuthFault(f"HTTP_{answer.status}", answer.body[:200].decode(errors="replace"))
    failure = AuthenticationFailed if answer.status in (401, 403, 428) else ServerError
    raise failure(answer.status, fault.error, fault.message, answer.body)


@decodable
class _Refusal(msgspec.Struct, frozen=True):
    error: ErrorBody | None = None
