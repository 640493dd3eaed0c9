"""docs/access.md: its SQL runs, its configuration is one, its links lead somewhere."""

import re
from pathlib import Path

from upwell.config import load_config
from upwell.testing.paper import read_blocks
from upwell.testing.wire import Site

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs/access.md"


def test_the_sql_runs(site: Site) -> None:
    (statements,) = (block for block in read_blocks(PAPER) if block.language == "sql")
    answer = site.root.run(statements.text)
    messages = [result["message"] for result in answer.results if "message" in result]
    assert messages[-1] == "User 'ann' dropped (soft delete)"
    assert "[REDACTED]" in answer.body.decode()
    assert "wonderland" not in answer.body.decode()


def test_the_configuration_is_one(tmp_path: Path) -> None:
    (example,) = (block for block in read_blocks(PAPER) if block.language == "toml")
    file = tmp_path / "upwell.toml"
    file.write_text(example.text)
    assert [each.name for each in load_config(file=file, environment={}, options={}).issuers] == ["shop"]
    # What is commented out is a setting too.
    whole = re.sub(r"^# (?=\w+ = )", "", example.text, flags=re.MULTILINE)
    file.write_text(re.sub(r"^secret.*$", "", whole, flags=re.MULTILINE))
    (issuer,) = load_config(file=file, environment={}, options={}).issuers
    assert (issuer.user_prefix, issuer.audience, issuer.jwks_file) == (
        "shop:",
        "upwell",
        tmp_path / "keys.json",
    )


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", PAPER.read_text())
    assert targets
    assert [target for target in targets if not (PAPER.parent / target).exists()] == []
