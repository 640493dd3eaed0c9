"""The OpenAPI document: what HTTP takes and gives, made from the very structs that read and write it.

Law: a body that is described here is the struct that a handler decodes or encodes, so the two can't differ.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from upwell import __version__
from upwell.protocol import messages, sync

OPENAPI_PATH = "/openapi.json"
_REF = "#/components/schemas/{name}"


class Denied(msgspec.Struct, frozen=True):
    """The answer to another machine that asks what only this one may."""

    error: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One path and method. `query` are parameters and their types.

    `answers` are structs by status; None is an object with payloads of the app, which no struct knows.
    """

    path: str
    method: str
    summary: str
    body: type[msgspec.Struct] | None
    answers: Mapping[int, Any]
    security: Sequence[str] = ()
    query: Mapping[str, str] | None = None


_SQL_FAULTS = dict.fromkeys((400, 401, 403, 413, 429, 500, 503), messages.SqlResponse)
_SYNC_FAULTS = dict.fromkeys((400, 401, 413, 500, 503), sync.SyncError)


def _auth_faults(*statuses: int) -> dict[int, Any]:
    return dict.fromkeys((*statuses, 429), messages.AuthFault)


OPERATIONS = (
    Operation(
        "/v1/api/sql", "post", "Run SQL: one statement or several, with parameters.", messages.SqlRequest,
        {200: messages.SqlResponse, **_SQL_FAULTS}, ("access",),
    ),
    Operation(
        "/v1/api/auth/login", "post", "Sign in with a password.", messages.LoginRequest,
        {200: messages.LoginResponse, **_auth_faults(400, 401, 403, 413, 428)},
    ),
    Operation(
        "/v1/api/auth/refresh", "post", "Sign in again with a refresh token.", None,
        {200: messages.LoginResponse, **_auth_faults(401)}, ("refresh",),
    ),
    Operation(
        "/v1/api/auth/logout", "post", "Expire the cookies.", None, {200: messages.MessageResponse},
    ),
    Operation(
        "/v1/api/auth/me", "get", "Who am I?", None,
        {200: messages.MeResponse, 401: messages.AuthFault}, ("access",),
    ),
    Operation(
        "/v1/api/auth/device", "post", "Get a token for a device, which opens the sync endpoints only.",
        sync.DeviceTokenRequest,
        {200: sync.DeviceTokenResponse, **dict.fromkeys((400, 401, 403, 413), messages.AuthFault)},
        ("access",),
    ),
    Operation(
        "/v1/api/auth/status", "get", "Does the server need its first set-up?", None,
        {200: messages.SetupStatus, 403: messages.AuthFault},
    ),
    Operation(
        "/v1/api/auth/setup", "post", "Set root's password and make the first administrator.",
        messages.SetupRequest,
        {200: messages.SetupResponse, **_auth_faults(400, 403, 409, 413)},
    ),
    *(
        Operation(path, "get", "Is the server well? For programs on its machine.", None,
                  {200: messages.HealthResponse, 403: Denied})
        for path in ("/health", "/v1/api/healthcheck")
    ),
    Operation(
        "/v1/api/cluster/health", "get", "The node, as a cluster of one.", None,
        {200: messages.ClusterHealth, 403: Denied},
    ),
    Operation("/livez", "get", "Does the server answer?", None, {200: messages.HealthResponse}),
    Operation(
        "/readyz", "get", "Can the server write?", None,
        {200: messages.HealthResponse, 503: messages.AuthFault},
    ),
    Operation(
        sync.UPLOAD_PATH, "post", "Upload a device's changes.", sync.UploadRequest,
        {200: None, **_SYNC_FAULTS}, ("device",),
    ),
    Operation(
        sync.DOWNLOAD_PATH, "get", "Download what changed after a cursor.", None,
        {200: None, 409: sync.SyncError, **_SYNC_FAULTS}, ("device",),
        {"after": "integer", "limit": "integer", "schema": "string", "include_self": "boolean",
         "until": "integer"},
    ),
    Operation(
        sync.SCHEMA_VERSION_PATH, "get", "The number of the app's schema.", None,
        {200: sync.SchemaVersion, **_SYNC_FAULTS}, ("device",),
    ),
)  # fmt: skip


@functools.cache
def document() -> bytes:
    """Return the document, OpenAPI 3.1, as JSON."""
    structs = {struct for each in OPERATIONS for struct in (each.body, *each.answers.values()) if struct}
    ordered = sorted(structs, key=lambda struct: str(struct.__name__))
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REF)
    found = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, found)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Upwell", "version": __version__, "license": {"name": "Apache-2.0"}},
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": _SCHEMES},
        }
    )


_OBJECT = {"type": "object"}
_SCHEMES = {
    name: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": text}
    for name, text in (
        ("access", "An access token of a login, or a token of a trusted issuer."),
        ("refresh", "A refresh token of a login."),
        ("device", "A device's token."),
    )
}


def _operation(each: Operation, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": each.summary,
        "operationId": f"{each.method}{each.path.replace('/', '_').replace('-', '_')}",
        "responses": {
            str(status): {"description": _describe(struct), "content": _content(schemas.get(struct, _OBJECT))}
            for status, struct in sorted(each.answers.items())
        },
    }
    if each.body is not None:
        found["requestBody"] = {"required": True, "content": _content(schemas[each.body])}
    if each.security:
        found["security"] = [{name: []} for name in each.security]
    if each.query:
        found["parameters"] = [
            {
                "name": name,
                "in": "query",
                "schema": {"type": kind} | ({"minimum": 0} if kind == "integer" else {}),
            }
            for name, kind in each.query.items()
        ]
    return found


def _describe(struct: type[msgspec.Struct] | None) -> str:
    if struct is None:
        return "Payloads of the app; their envelope is in the documentation of the device sync."
    return (struct.__doc__ or struct.__name__).split("\n")[0]


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


async def openapi(request: Request) -> Response:
    """Answer with the document."""
    return Response(document(), media_type="application/json")


ROUTE = Route(OPENAPI_PATH, openapi, methods=["GET"])
