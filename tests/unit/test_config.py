"""Promise: settings come from file < environment < command line; what can't be meant stops the start."""

from dataclasses import fields
from pathlib import Path

import pytest

from upwell.config import _BOUNDS, Config, load_config, load_settings, shown, shown_issuer
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('log_level = "loud"', "log_level is 'debug' or .* not 'loud'"),
        ("drain_s = nan", "drain_s is 0..86400, not nan"),
        ("drain_s = inf", "drain_s"),
        ("drain_s = -5", "drain_s is 0..86400, not -5"),
        (f"drain_s = 1{'0' * 400}", "drain_s can't be 1.*: it is a number"),
        ("port = 8.7", "port can't be 8.7: it is a whole number"),
        ("port = true", "port can't be True: it is a whole number"),
        ('port = "8080"', "port can't be '8080': it is a whole number"),
        ("jwt_expiry_hours = -1", "jwt_expiry_hours"),
        ("request_body_bytes_max = -1", "request_body_bytes_max"),
        ("ws_subscriptions_max = 0", "ws_subscriptions_max is 1.."),
        ("schema_version = -4", "schema_version"),
        ("shape_cache = 3", "shape_cache can't be 3: it is true or false"),
        ("root_password = 54321", "root_password can't be what was given: it is text"),
        ("data_dir = 5", "data_dir can't be 5: it is a path"),
        ('data_dir = ""', "data_dir can't be '': it is a path"),
        ('host = ""', "host is empty"),
        ('public_origin = "db.example"', "public_origin is empty, or as https://db.example"),
        ('public_origin = "https://db.example/path"', "public_origin is empty"),
    ],
)
def test_nothing_in_a_file_is_guessed(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "upwell.toml"
    file.write_text(text)
    with pytest.raises(StartRefused, match=message):
        load_config(file=file, environment={}, options={})


def test_a_file_that_is_no_text_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "upwell.toml"
    file.write_bytes(b'host = "\xff"\n')
    with pytest.raises(StartRefused, match="can't be read"):
        load_config(file=file, environment={}, options={})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "8.7"),
        ("PORT", "8_0"),
        ("PORT", ""),
        ("SHAPE_CACHE", "maybe"),
        ("DRAIN_S", "nan"),
        ("DATA_DIR", ""),
        ("HOST", " "),
        ("ROOT_PASSWORD", "\udcff"),
    ],
)
def test_nothing_in_the_environment_is_guessed(name: str, text: str) -> None:
    with pytest.raises(StartRefused, match=name.lower()):
        load_config(file=None, environment={f"UPWELL_{name}": text}, options={})


def test_what_the_command_line_reads_is_no_setting_of_the_server() -> None:
    names = ("UPWELL_URL", "UPWELL_USER", "UPWELL_PASSWORD", "UPWELL_CONFIG")
    assert load_config(file=None, environment=dict.fromkeys(names, "x"), options={}) == Config()


def test_every_number_has_bounds_that_its_default_keeps() -> None:
    numbers = {field.name for field in fields(Config) if type(field.default) in (int, float)}
    assert numbers == set(_BOUNDS)
    Config().refuse_senseless()


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[auth]\nx = 1", "nothing but issuers"),
        ("[auth.issuers]\na = 1", "is a table"),
        ('[auth.issuers.a]\nissuer = "i"', "either secret or jwks_file"),
        (f'[auth.issuers.a]\nissuer = "i"\nsecret = "{"s" * 32}"\njwks_file = "f"', "either secret or"),
        ('[auth.issuers.a]\nissuer = "i"\nsecret = "short"', "fewer than 32"),
        (f'[auth.issuers.a]\nsecret = "{"s" * 32}"', "issuer is the `iss`"),
        (f'[auth.issuers.a]\nissuer = "kalamdb"\nsecret = "{"s" * 32}"', "isn't kalamdb"),
        (f'[auth.issuers.a]\nissuer = "i"\nsecret = "{"s" * 32}"\ncolour = "red"', "unknown setting: colour"),
        (f'[auth.issuers.a]\nissuer = 5\nsecret = "{"s" * 32}"', "issuer is text"),
        (f'[auth.issuers.a]\nissuer = "i"\nsecret = "{"s" * 32}"\nauto_provision = "no"', "true or false"),
        (f'[auth.issuers.a]\nissuer = "i"\nsecret = "{"s" * 32}"\nuser_claim = ""', "name claims"),
        (
            f'[auth.issuers.a]\nissuer = "i"\nsecret = "{"s" * 32}"\n'
            f'[auth.issuers.b]\nissuer = "j"\nsecret = "{"s" * 32}"',
            "same user_prefix",
        ),
    ],
)
def test_an_issuer_that_makes_no_sense_stops_the_start(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "upwell.toml"
    file.write_text(text)
    with pytest.raises(StartRefused, match=reason):
        load_config(file=file, environment={}, options={})


def test_settings_are_shown_without_secrets_and_with_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "upwell.toml"
    file.write_text(f'port = 9\n[auth.issuers.a]\nissuer = "i"\nsecret = "{"s" * 32}"\n')
    config, origins = load_settings(
        file=file,
        environment={"UPWELL_ROOT_PASSWORD": "hidden", "UPWELL_DEV": "true"},
        options={"host": "::1"},
    )
    assert origins == {
        "port": f"file {file}",
        "issuers": f"file {file}",
        "root_password": "environment UPWELL_ROOT_PASSWORD",
        "dev": "environment UPWELL_DEV",
        "host": "option --host",
    }
    settings = shown(config)
    assert {settings["root_password"], settings["jwt_secret"]} == {'"***"'}
    assert (settings["port"], settings["dev"], settings["host"]) == ("9", "true", '"::1"')
    assert shown_issuer(config.issuers[0])["secret"] == '"***"'


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("", "http://127.0.0.1:8080"), ("https://db.example:8443/", "https://db.example:8443")],
)
def test_where_clients_find_the_server(given: str, wanted: str) -> None:
    assert load_config(file=None, environment={}, options={"public_origin": given}).origin == wanted
