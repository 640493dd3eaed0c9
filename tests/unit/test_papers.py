"""Promise: the papers speak of what exists: each guarantee names a test that is there."""

import codeop
import re
from pathlib import Path

import pytest

from upwell.testing.paper import read_blocks

ROOT = Path(__file__).parents[2]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
GUARANTEES, COMPATIBILITY = (
    (ROOT / "docs" / paper).read_text() for paper in ("guarantees.md", "compatibility.md")
)
NAMED = TEST.findall(GUARANTEES) + TEST.findall(COMPATIBILITY)


def test_there_are_guarantees() -> None:
    assert len(TEST.findall(GUARANTEES)) > 30


def test_each_row_of_the_compatibility_names_its_test() -> None:
    rows = [line for line in COMPATIBILITY.splitlines() if line.startswith("| ")]
    heads = [row for row in rows if row.endswith("| test |")]
    assert len(rows) > 100
    assert [row for row in rows if row not in heads and not TEST.search(row)] == []


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_the_test_of_a_guarantee_exists(file: str, name: str) -> None:
    assert re.search(rf"^(?:async def|def|class|) ?{name}\b", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "paper", ["README.md", "ARCHITECTURE.md", "docs/guarantees.md", "docs/compatibility.md"]
)
def test_links_lead_somewhere(paper: str) -> None:
    path = ROOT / paper
    targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_architecture_names_functions_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = re.findall(r"`(\w+/\w+\.py): (\w+)(?:\.(\w+))?`", re.sub(r"\s+", " ", text))
    assert len(named) > 10
    for file, *names in named:
        source = (ROOT / "src/upwell" / file).read_text()
        for name in filter(None, names):
            assert re.search(rf"^\s*(?:async )?(?:def|class) {name}\b|^{name} =", source, re.MULTILINE), (
                file,
                name,
            )


def test_architecture_names_every_module() -> None:
    """But for the kits and the demo, of which it tells what they are for."""
    named = {
        name.rpartition("/")[2].removesuffix(".py")
        for name in re.findall(r"`([\w/.]+)`", (ROOT / "ARCHITECTURE.md").read_text())
    }
    modules = {
        str(path.relative_to(ROOT / "src/upwell"))
        for path in (ROOT / "src/upwell").rglob("*.py")
        if path.stem not in named and not path.stem.startswith("__")
    }
    assert {
        module for module in modules if module.split("/")[0] not in {"testing", "simulate", "demo"}
    } == set()


@pytest.mark.parametrize(
    "paper", ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
)
def test_a_session_can_be_pasted_at_the_prompt(paper: str) -> None:
    """There a definition or a loop ends with an empty line, and has none inside."""
    for block in read_blocks(ROOT / paper):
        is_file = re.match(r"# [\w.]+\.py\n", block.text)
        statement: list[str] = []
        for line in [*block.text.splitlines(), ""] if block.language == "python" and not is_file else []:
            statement.append(line)
            if codeop.compile_command("\n".join(statement)) is not None:
                statement.clear()
        assert statement == [], block.text
