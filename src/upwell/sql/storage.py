"""The grammar of storages: CREATE, ALTER and DROP STORAGE, STORAGE CHECK.

Law: a clause that isn't known is refused by name, one that is given twice too; what is read makes a whole
definition, or a change of one. No message repeats what CONFIG or CREDENTIALS say.
"""

from upwell.errors import InvalidOperation, InvalidSql
from upwell.sql.lex import Tokens
from upwell.sql.maintenance import AlterStorage, CheckStorage, CreateStorage, DropStorage
from upwell.storage.definition import (
    SHARED_TEMPLATE,
    USER_TEMPLATE,
    Storage,
    StorageType,
    checked,
    checked_id,
    read_settings,
)

_PATHS = ("PATH", "BASE_DIRECTORY", "BUCKET")
_TEXTS = ("NAME", "DESCRIPTION", "SHARED_TABLES_TEMPLATE", "USER_TABLES_TEMPLATE", "CONFIG")
_CREATE = ("TYPE", *_PATHS, "REGION", *_TEXTS, "CREDENTIALS")
_ALTER = (*_TEXTS, "CREDENTIALS")


def read_create_storage(tokens: Tokens) -> CreateStorage:
    """Read CREATE STORAGE id TYPE '…' PATH '…' and its other clauses, in any order."""
    tokens.expect("CREATE", "STORAGE")
    name = read_storage_id(tokens)
    clauses = _clauses(tokens, _CREATE)
    written = clauses.pop("TYPE", None)
    if written is None:
        raise InvalidSql(f"CREATE STORAGE needs TYPE: {_types()}")
    if written.lower() not in {each.value for each in StorageType}:
        raise InvalidSql(f"TYPE '{written[:60]}' is no type of storage; there are {_types()}")
    storage_type = StorageType(written.lower())
    base = _base(storage_type, clauses)
    if "REGION" in clauses and storage_type is not StorageType.S3:
        raise InvalidSql(f"REGION goes with BUCKET of an s3 storage, not with {storage_type.value}")
    config, credentials = read_settings(
        storage_type, clauses.get("CONFIG"), clauses.get("CREDENTIALS"), clauses.get("REGION")
    )
    return CreateStorage(
        checked(
            Storage(
                id=name,
                type=storage_type,
                name=clauses.get("NAME", name),
                base=base,
                description=clauses.get("DESCRIPTION"),
                shared_template=_template(clauses.get("SHARED_TABLES_TEMPLATE"), SHARED_TEMPLATE),
                user_template=_template(clauses.get("USER_TABLES_TEMPLATE"), USER_TEMPLATE),
                config=config,
                credentials=credentials,
            )
        )
    )


def read_alter_storage(tokens: Tokens) -> AlterStorage:
    """Read ALTER STORAGE id SET clause [[,] [SET] clause …]."""
    tokens.expect("ALTER", "STORAGE")
    name = read_storage_id(tokens)
    tokens.expect("SET")
    clauses = _clauses(tokens, _ALTER)
    if not clauses:
        raise tokens.unexpected(", ".join(_ALTER))
    return AlterStorage(
        name,
        clauses.get("NAME"),
        clauses.get("DESCRIPTION"),
        clauses.get("SHARED_TABLES_TEMPLATE"),
        clauses.get("USER_TABLES_TEMPLATE"),
        clauses.get("CONFIG"),
        clauses.get("CREDENTIALS"),
    )


def read_drop_storage(tokens: Tokens) -> DropStorage:
    """Read DROP STORAGE [IF EXISTS] id."""
    tokens.expect("DROP", "STORAGE")
    if_exists = tokens.accept("IF", "EXISTS")
    return DropStorage(read_storage_id(tokens), if_exists)


def read_check_storage(tokens: Tokens) -> CheckStorage:
    """Read STORAGE CHECK id [EXTENDED]."""
    tokens.expect("STORAGE", "CHECK")
    return CheckStorage(read_storage_id(tokens), tokens.accept("EXTENDED"))


def read_storage_id(tokens: Tokens) -> str:
    """Take an id, in quotes or bare; a bare one may have `-` too."""
    if tokens.peek().kind in ("string", "escaped", "dollar"):
        return checked_id(tokens.string("a storage's id"))
    first = tokens.peek()
    name, end = tokens.name("a storage's id"), first.end
    while tokens.peek().start == end and (
        tokens.peek().word == "-" or tokens.peek().kind in ("word", "number")
    ):
        token = tokens.take()
        name, end = name + token.text, token.end
    return checked_id(name)


def _clauses(tokens: Tokens, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    while not tokens.at_end and not tokens.sees(";"):
        tokens.accept(",")
        tokens.accept("SET")
        word = tokens.peek().word
        if word not in known:
            raise tokens.unexpected(f"one of {', '.join(known)}")
        tokens.take()
        tokens.accept("=")
        if word in found:
            raise InvalidSql(f"{word} is given twice")
        is_bare = word == "TYPE" and tokens.peek().kind == "word"
        found[word] = tokens.take().text if is_bare else tokens.string(f"the {word} in quotes")
    return found


def _base(storage_type: StorageType, clauses: dict[str, str]) -> str:
    given = [word for word in _PATHS if word in clauses]
    if len(given) != 1:
        raise InvalidSql("CREATE STORAGE needs one of PATH, BASE_DIRECTORY and BUCKET")
    base = clauses[given[0]].strip()
    if not base:
        raise InvalidOperation(f"{given[0]} of a storage can't be empty")
    if given[0] == "BUCKET" and storage_type is StorageType.FILESYSTEM:
        raise InvalidSql("BUCKET is for s3, gcs and azure; a filesystem storage has a PATH")
    if given[0] == "BUCKET" and not base.startswith(storage_type.scheme):
        base = storage_type.scheme + base
    return base[:-1] if base.endswith("/") and len(base) > 1 else base


def _template(written: str | None, default: str) -> str:
    return default if written is None else written.removesuffix("/")


def _types() -> str:
    return ", ".join(f"'{each.value}'" for each in StorageType)
