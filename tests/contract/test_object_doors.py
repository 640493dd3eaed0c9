"""What a definition of a `gcs` or `azure` storage says arrives where it should: each call, over HTTP.

A small server answers as theirs do. It proves the names of the options and that objects are created only
once, not that Google's or Microsoft's service is understood in all.
"""

import base64
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from upwell.storage.definition import Storage, StorageType, read_settings
from upwell.storage.objects import Bucket

HOST = "127.0.0.1"
_NAMED = {"ETag": '"1"', "Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT", "x-goog-generation": "1"}
_PART = b"--done\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\nHTTP/1.1 202 Accepted\r\n\r\n"
_BLOB = (
    "<Blob><Name>{}</Name><Properties><Last-Modified>{}</Last-Modified><Content-Length>5</Content-Length>"
    "<Content-Type>application/octet-stream</Content-Type><Etag>1</Etag></Properties></Blob>"
)
_ITEM = "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>5</Size></Contents>"


class Cloud:
    """Objects by path, and what was asked for: (method, path, headers)."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        handler = type("Handler", (_Handler,), {"cloud": self})
        self._server = http.server.ThreadingHTTPServer((HOST, 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://{HOST}:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _body(self) -> bytes:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.cloud.seen.append((self.command, self.path, headers))
        return self.rfile.read(int(headers.get("content-length") or 0))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**_NAMED, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        body, path = self._body(), self.path
        creates = self.headers.get("If-None-Match") == "*"
        creates = creates or self.headers.get("x-goog-if-generation-match") == "0"
        if creates and path in self.cloud.objects:
            self._answer(412 if "x-goog-if-generation-match" in self.headers else 409)
            return
        self.cloud.objects[path] = body
        self._answer(201 if "x-ms-version" in self.headers else 200)

    def do_GET(self) -> None:
        self._body()
        if "comp=list" in self.path or "list-type=2" in self.path:
            self._list("comp=list" in self.path)
        elif self.path in self.cloud.objects:
            self._answer(200, self.cloud.objects[self.path])
        else:
            self._answer(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self._body()
        self.cloud.objects.pop(self.path, None)
        self._answer(204)

    def do_POST(self) -> None:
        """Azure's batch of deletes."""
        for path in re.findall(rb"DELETE (\S+)", self._body()):
            self.cloud.objects = {
                key: data for key, data in self.cloud.objects.items() if path.decode() not in key
            }
        self._answer(202, _PART + b"--done--\r\n", Content_Type="multipart/mixed; boundary=done")

    def _list(self, is_azure: bool) -> None:
        keys = [path.split("box/", 1)[1].replace("%2F", "/") for path in self.cloud.objects]
        if is_azure:
            blobs = "".join(_BLOB.format(key, _NAMED["Last-Modified"]) for key in keys)
            text = f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>"
        else:
            text = f"<ListBucketResult>{''.join(map(_ITEM.format, keys))}</ListBucketResult>"
        self._answer(200, text.encode())


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    cloud = Cloud()
    yield cloud
    cloud.close()


def defined(cloud: Cloud, storage_type: StorageType) -> Bucket:
    """Return a bucket as CREATE STORAGE would define it."""
    config: dict[str, object] = {"allow_http": True, "retries_max": 0, "timeout_s": 20}
    if storage_type is StorageType.AZURE:
        config |= {"account_name": "account", "endpoint": f"{cloud.url}/account"}
        secrets = {"account_key": base64.b64encode(b"a key of Azure").decode()}
    else:
        key = {"gcs_base_url": cloud.url, "disable_oauth": True}
        secrets = {
            "service_account_key": json.dumps(
                key | dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
            )
        }
    references = {name: f"env:STORAGE_{name.upper()}" for name in secrets}
    settings, found = read_settings(storage_type, json.dumps(config), json.dumps(references))
    assert found == references
    base = f"{storage_type.scheme}box/prefix"
    return Bucket(Storage("s", storage_type, "s", base, config=settings, credentials=found), secrets)


@pytest.mark.parametrize("storage_type", [StorageType.GCS, StorageType.AZURE])
def test_each_call_arrives(cloud: Cloud, storage_type: StorageType, tmp_path: Path) -> None:
    bucket = defined(cloud, storage_type)
    bucket.prove("server")
    assert cloud.objects == {}, "the proof leaves nothing"
    bucket.put_new("d/a", b"hello")
    with pytest.raises(FileExistsError):
        bucket.put_new("d/a", b"other")
    bucket.put_new("d/a", b"hello")  # a put of ours whose answer was lost
    assert bucket.get("d/a") == b"hello"
    bucket.fetch("d/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"hello"
    assert bucket.names("d") == ["a"]
    bucket.put("d/a", b"again")
    assert bucket.get("d/a") == b"again"
    bucket.delete("d/a")
    assert cloud.objects == {}
    with pytest.raises(FileNotFoundError):
        bucket.get("d/a")
    start = "/account/box" if storage_type is StorageType.AZURE else "/box"
    assert all(path.startswith(start) for _, path, _ in cloud.seen)
    if storage_type is StorageType.AZURE:
        assert all(headers["authorization"].startswith("SharedKey account:") for _, _, headers in cloud.seen)
