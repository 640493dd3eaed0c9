"""docs/jobs.md runs as it stands: its Python, its SQL, and the settings that it names are the server's."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from upwell.config import Config
from upwell.sql.lex import split
from upwell.testing.paper import ADDRESS, read_blocks
from upwell.testing.wire import Site, Wire

PAPER = Path(__file__).parents[2] / "docs/jobs.md"
PROMISED = re.compile(r"^print\(.*\)  # (.+)$", re.MULTILINE)
# `job_retention_s` (7 days): the name of a setting, and what it is by default.
SETTING = re.compile(r"`([a-z_]+)` \(([0-9,]+)( days| seconds)?\)")


def test_the_program_prints_what_it_promises(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPWELL_ROOT_PASSWORD", site.server.root_password)
    (program,) = [block.text for block in read_blocks(PAPER) if block.language == "python"]
    program = program.replace(ADDRESS, site.server.url).replace("lab", site.namespace() + "x")
    program = program.replace(
        "status = 'completed'", "status = 'completed' AND parameters LIKE '%x.readings%'"
    )
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, str(PAPER), "exec"), {"__name__": "__main__"})
    assert out.getvalue().splitlines() == PROMISED.findall(program)


def test_its_sql_is_understood(site: Site, root: Wire) -> None:
    space = site.namespace()
    table = f"{space}.readings"
    for block in read_blocks(PAPER):
        for statement in split(block.text) if block.language == "sql" else []:
            answer = root.sql(re.sub(r"\bapp\b", space, statement))
            if "FL-3f9a0c12be77" in statement:
                assert "job 'FL-3f9a0c12be77'" in answer.refused(400, "SQL_EXECUTION_ERROR")
            else:
                assert answer.status == 200, answer.body
    root.run(f"DROP TABLE {table}")


def test_the_settings_are_the_servers() -> None:
    found = SETTING.findall(PAPER.read_text())
    units = {"": 1, " seconds": 1, " days": 24 * 3600}
    assert len(found) >= 7
    for name, number, unit in found:
        assert getattr(Config(), name) == int(number.replace(",", "")) * units[unit], name
    assert f"`flush_policy` says: `{Config().flush_policy}`" in PAPER.read_text()
