"""The command line: `upwell serve`, `sql`, `cold-sql`, `devices`, `simulate`, `demo`.

Law: what the user can mend is said in one sentence on stderr with exit code 2; a traceback is a bug.
"""

import argparse
import getpass
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from upwell import __version__, logs
from upwell.config import load_config, load_settings, shown, shown_issuer
from upwell.errors import StartRefused

NEEDS_SERVER = "this command needs the server's libraries: pip install 'upwell[server]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except StartRefused as refusal:
        print(f"upwell: {refusal}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="upwell", description="Realtime SQL, tiered storage, device sync.")
    parser.add_argument("--version", action="version", version=f"upwell {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the server"))
    _add_sql(commands.add_parser("sql", help="run SQL, or start an interactive session"))
    _add_cold_sql(commands.add_parser("cold-sql", help="print the DuckDB query over a table's files"))
    _add_config(commands.add_parser("config", help="what settings are in force"))
    _add_devices(commands.add_parser("devices", help="what an app's devices need on the server"))
    _add_simulate(
        commands.add_parser("simulate", help="play an app's life with real devices, every value checked")
    )
    _add_demo(commands.add_parser("demo", help="watch the main job run for real, every value checked"))
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--data-dir", type=Path, help="where the data lives (default: ./upwell-data)")
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default: 8080)")
    serve.add_argument(
        "--config",
        type=Path,
        help="settings as TOML, overridden by environment and options (default: UPWELL_CONFIG)",
    )
    serve.add_argument(
        "--durability", choices=("group", "async"), help="acknowledge after or before the sync"
    )
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    serve.add_argument(
        "--dev",
        action="store_true",
        default=None,
        help="development only: /dummy-signin gives device tokens to anybody",
    )
    serve.set_defaults(command=_serve)


def _add_sql(sql: argparse.ArgumentParser) -> None:
    sql.add_argument("-c", dest="text", metavar="TEXT", help="run TEXT and exit")
    _add_account(sql)
    sql.add_argument("--as", dest="as_user", metavar="USER", help="run each statement as this user")
    sql.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    sql.set_defaults(command=_sql)


def _add_cold_sql(cold: argparse.ArgumentParser) -> None:
    cold.add_argument("table", help="namespace.table")
    cold.add_argument("--user", help="only this user's rows of a USER table")
    cold.add_argument(
        "--data-dir", type=Path, default=os.environ.get("UPWELL_DATA_DIR", "upwell-data"),
        help="where the data lives, or any directory that has the table's files (default: ./upwell-data)",
    )  # fmt: skip
    cold.set_defaults(command=_cold_sql)


def _add_config(config: argparse.ArgumentParser) -> None:
    show = config.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "show", help="print the settings in force and where they come from, secrets masked"
    )
    show.add_argument("--config", type=Path, help="settings as TOML (default: UPWELL_CONFIG)")
    show.set_defaults(command=_show_config)


def _add_devices(devices: argparse.ArgumentParser) -> None:
    register = devices.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "register", help="create the synced tables of an app's SQLite file"
    )
    register.add_argument("file", type=Path, help="an SQLite file with the app's tables; it isn't changed")
    register.add_argument("--namespace", required=True, help="the namespace that the tables belong to")
    register.add_argument("--table", action="append", metavar="TABLE", help="only this one (may be repeated)")
    register.add_argument("--dry-run", action="store_true", help="print the statements, run nothing")
    _add_account(register)
    register.set_defaults(command=_register)


def _add_simulate(simulate: argparse.ArgumentParser) -> None:
    simulate.add_argument("name", nargs="+", help="scenarios, or 'all'; 'list' tells which there are")
    _add_report(simulate)
    simulate.set_defaults(command=_simulate)


def _add_demo(demo: argparse.ArgumentParser) -> None:
    _add_report(demo)
    demo.set_defaults(command=_demo)


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument("--keep", type=Path, metavar="DIR", help="leave data, SQLite files and logs in DIR")


def _add_account(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url",
        default=os.environ.get("UPWELL_URL", "http://127.0.0.1:8080"),
        help="the server (default: UPWELL_URL, or http://127.0.0.1:8080)",
    )
    command.add_argument(
        "--user", default=os.environ.get("UPWELL_USER", "root"), help="account (default: root)"
    )
    command.add_argument(
        "--password", help="default: UPWELL_PASSWORD, for root UPWELL_ROOT_PASSWORD, or asked"
    )


def _serve(options: argparse.Namespace) -> int:
    names = ("data_dir", "host", "port", "durability", "log_level", "dev")
    config = load_config(
        file=_config_file(options),
        environment=os.environ,
        options={name: getattr(options, name) for name in names},
    )
    logs.configure(config.log_level)
    try:
        from upwell.app import run
    except ModuleNotFoundError as error:
        raise StartRefused(f"{NEEDS_SERVER} ({error.name} is missing)") from error
    try:
        return run(config)
    except ExceptionGroup as group:
        refusals = group.subgroup(StartRefused)
        raise StartRefused(str(_first(refusals))) if refusals else group from group
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(config.data_dir):
            raise
        raise StartRefused(f"data directory {config.data_dir} can't be used: {error.strerror}") from error


def _config_file(options: argparse.Namespace) -> Path | None:
    configured = os.environ.get("UPWELL_CONFIG")
    return options.config or (Path(configured) if configured else None)


def _show_config(options: argparse.Namespace) -> int:
    config, origins = load_settings(file=_config_file(options), environment=os.environ, options={})
    for name, value in shown(config).items():
        print(f"{name} = {value}  # {origins.get(name, 'default')}")
    for issuer in config.issuers:
        print(f"\n[auth.issuers.{issuer.name}]  # {origins['issuers']}")
        for name, value in shown_issuer(issuer).items():
            print(f"{name} = {value}")
    return 0


def _cold_sql(options: argparse.Namespace) -> int:
    try:
        from upwell.cli.cold import cold_sql
    except ModuleNotFoundError as error:
        raise StartRefused(f"{NEEDS_SERVER} ({error.name} is missing)") from error
    print(cold_sql(Path(options.data_dir), options.table.lower(), options.user))
    return 0


def _first(group: BaseException) -> BaseException:
    return _first(group.exceptions[0]) if isinstance(group, BaseExceptionGroup) else group


def _sql(options: argparse.Namespace) -> int:
    from upwell.cli.repl import repl, run_sql
    from upwell.client import ClientError, connect

    password = _password(options)
    try:
        with connect(options.url, user=options.user, password=password) as client:
            if options.text is not None:
                return run_sql(
                    client,
                    options.text,
                    as_json=options.json,
                    out=sys.stdout,
                    errors=sys.stderr,
                    as_user=options.as_user,
                )
            return repl(client, as_json=options.json, as_user=options.as_user)
    except ClientError as error:
        print(f"upwell: {error}", file=sys.stderr)
        return 1


def _register(options: argparse.Namespace) -> int:
    from upwell.cli.devices import register, statements
    from upwell.client import ClientError, connect

    wanted = statements(options.file, options.namespace, options.table)
    if options.dry_run:
        print("\n".join(wanted))
        return 0
    password = _password(options)
    try:
        with connect(options.url, user=options.user, password=password) as client:
            return register(client, wanted, out=sys.stdout)
    except ClientError as error:
        print(f"upwell: {error}", file=sys.stderr)
        return 1


def _password(options: argparse.Namespace) -> str:
    """Return the password of the account that the options name; the address is judged before it is asked."""
    _refuse_address(options.url)
    password: str | None = options.password or os.environ.get("UPWELL_PASSWORD")
    if password is None and options.user == "root":
        password = os.environ.get("UPWELL_ROOT_PASSWORD")
    return _asked_password(options.user) if password is None else password


def _asked_password(user: str) -> str:
    with warnings.catch_warnings():
        # Without a terminal getpass would read it, echoed, from where the statements come from.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(f"Password of {user}: ")
        except (EOFError, getpass.GetPassWarning) as error:
            raise StartRefused(
                f"no password for {user!r}, nor a terminal to ask for it: set UPWELL_PASSWORD or --password"
            ) from error


def _refuse_address(url: str) -> None:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise StartRefused(f"--url is not a server's address: {url!r} (expected http://host:port)")


def _demo(options: argparse.Namespace) -> int:
    from upwell.demo import run_demo

    return run_demo(as_json=options.json, keep=options.keep, out=sys.stdout)


def _simulate(options: argparse.Namespace) -> int:
    from upwell.simulate import run_simulation

    return run_simulation(options.name, as_json=options.json, keep=options.keep, out=sys.stdout)
