"""docs/writing.md runs as it stands: each of its programs prints what it promises."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from upwell.testing.paper import ADDRESS, read_blocks
from upwell.testing.wire import Site

PAPER = Path(__file__).parents[2] / "docs/writing.md"
# A print may be broken over lines.
PROMISED = re.compile(r"^ *(?:print\(.*)?\)  # (.+)$", re.MULTILINE)


def test_the_paper_tells_the_truth(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPWELL_ROOT_PASSWORD", site.server.root_password)
    session: dict[str, object] = {"__name__": "__main__"}
    space = site.namespace() + "x"
    for block in read_blocks(PAPER):
        text = block.text.replace(ADDRESS, site.server.url)
        # Names of its own: other papers have shops too.
        for name in ("NAMESPACE shop", "shop.", 'use("shop'):
            text = text.replace(name, name.replace("shop", space))
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, str(PAPER), "exec"), session)
        assert out.getvalue().splitlines() == PROMISED.findall(block.text), block.text
