"""The page `/examples/live.html`: one file that follows a live query in a browser.

Law: it comes from the server that it speaks to, so no other origin has to be let in; it runs no script and no
style but its own.
"""

import base64
import hashlib
import re
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

PATH = "/examples/live.html"


def read_page() -> str:
    """Return the page's text."""
    return (files("upwell.edge") / "pages" / "live.html").read_text(encoding="utf-8")


async def live_page(request: Request) -> Response:
    """Answer with the page."""
    page = read_page()
    return Response(page, media_type="text/html", headers=_headers(page))


def _headers(page: str) -> dict[str, str]:
    rules = (
        "default-src 'none'",
        f"script-src '{_hash(page, 'script')}'",
        f"style-src '{_hash(page, 'style')}'",
        # Any server, since its address is asked for; that one decides whom it lets in.
        "connect-src http: https: ws: wss:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(rules),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash(page: str, element: str) -> str:
    """Return what allows an inline element (CSP level 3, section 2.3.1)."""
    found = re.search(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    assert found is not None, f"the page has one {element}"
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
