"""Promise: settings come from file < environment < command line; what can't be meant stops the start."""

from pathlib import Path

import pytest

from upwell.config import Config, load_config
from upwell.errors import StartRefused


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "upwell.toml"
    file.write_text('port = 1\nhost = "from-file"\nlog_level = "debug"\n')
    config = load_config(
        file=file,
        environment={"UPWELL_PORT": "2", "UPWELL_HOST": "from-env"},
        options={"port": 3, "host": None},
    )
    assert (config.port, config.host, config.log_level) == (3, "from-env", "debug")


def test_values_are_converted_to_their_types() -> None:
    environment = {"UPWELL_SHAPE_CACHE": "false", "UPWELL_DRAIN_S": "1.5", "UPWELL_DATA_DIR": "/x"}
    config = load_config(file=None, environment=environment, options={})
    assert (config.shape_cache, config.drain_s, config.data_dir) == (False, 1.5, Path("/x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("prot = 1", "unknown settings: prot"), ("port = ", "can't be read"), ('port = "x"', "setting port")],
)
def test_a_wrong_file_stops_the_start(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "upwell.toml"
    file.write_text(text)
    with pytest.raises(StartRefused, match=message):
        load_config(file=file, environment={}, options={})


def test_an_unknown_variable_stops_the_start() -> None:
    with pytest.raises(StartRefused, match="UPWELL_PROT"):
        load_config(file=None, environment={"UPWELL_PROT": "1"}, options={})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(host="0.0.0.0", root_password="x"), "default secret"),
        (Config(host="0.0.0.0", jwt_secret="s" * 32), "root password"),
        (Config(jwt_secret="short"), "16 characters"),
        (Config(durability="maybe"), "durability"),
        (Config(bcrypt_cost=20), "bcrypt_cost"),
    ],
)
def test_unsafe_settings_are_refused(config: Config, message: str) -> None:
    with pytest.raises(StartRefused, match=message):
        config.refuse_unsafe()


def test_loopback_with_defaults_is_fine() -> None:
    Config().refuse_unsafe()
    Config(host="0.0.0.0", jwt_secret="s" * 32, root_password="x").refuse_unsafe()
