"""The grammar of the statements about accounts.

Law: a name keeps its case here, unlike names of tables, because it is whose rows they are.
"""

import re

import msgspec

from upwell.decodable import decodable
from upwell.engine.catalog import Role
from upwell.errors import InvalidSql
from upwell.sql.lex import Tokens
from upwell.sql.statements import AlterUser, CreateUser, DropUser

NAME_CHARS_MAX = 128
_BARE_NAME = re.compile(r"(?:(?!--|/\*)[^\s('\";,])+")
_ROLES = {
    "dba": Role.DBA,
    "admin": Role.DBA,
    "service": Role.SERVICE,
    "developer": Role.SERVICE,
    "analyst": Role.SERVICE,
    "user": Role.USER,
    "viewer": Role.USER,
    "readonly": Role.USER,
    "system": Role.SYSTEM,
}


@decodable
class Identity(msgspec.Struct, frozen=True):
    """Who an oauth account is: its subject at an issuer."""

    provider: str
    subject: str


def read_create_user(tokens: Tokens) -> CreateUser:
    """Read CREATE USER name WITH PASSWORD '…' | OAUTH '{…}' | INTERNAL ROLE role [EMAIL '…']."""
    tokens.expect("CREATE", "USER")
    if tokens.sees("IF", "NOT", "EXISTS"):
        raise InvalidSql("CREATE USER has no IF NOT EXISTS; SELECT user_id FROM system.users lists them")
    name = read_user_name(tokens)
    tokens.expect("WITH")
    password, auth_data = None, None
    if tokens.accept("PASSWORD"):
        auth_type, password = "password", tokens.string("the password in quotes")
    elif tokens.accept("OAUTH"):
        auth_type, auth_data = "oauth", _identity(tokens)
    elif tokens.accept("INTERNAL"):
        auth_type = "internal"
    else:
        raise InvalidSql("CREATE USER takes WITH PASSWORD '…', WITH OAUTH '{…}' or WITH INTERNAL")
    tokens.expect("ROLE")
    role = _role(tokens)
    email = tokens.string("the e-mail address in quotes") if tokens.accept("EMAIL") else None
    return CreateUser(name, password, role, email, auth_type, auth_data)


def read_alter_user(tokens: Tokens) -> AlterUser:
    """Read ALTER USER name SET PASSWORD '…' | SET ROLE role | SET EMAIL '…'."""
    tokens.expect("ALTER", "USER")
    name = read_user_name(tokens)
    tokens.expect("SET")
    if tokens.accept("PASSWORD"):
        return AlterUser(name, password=tokens.string("the password in quotes"))
    if tokens.accept("ROLE"):
        return AlterUser(name, role=_role(tokens))
    if tokens.accept("EMAIL"):
        return AlterUser(name, email=tokens.string("the e-mail address in quotes"))
    raise tokens.unexpected("PASSWORD, ROLE or EMAIL")


def read_drop_user(tokens: Tokens) -> DropUser:
    """Read USER [IF EXISTS] name, behind DROP."""
    tokens.expect("USER")
    if_exists = tokens.accept("IF", "EXISTS")
    return DropUser(read_user_name(tokens), if_exists)


def read_user_name(tokens: Tokens) -> str:
    """Take a user's name, bare or in quotes."""
    name = _written_name(tokens)
    if not 0 < len(name) <= NAME_CHARS_MAX:
        raise InvalidSql(f"a user's name has 1..{NAME_CHARS_MAX} characters")
    return name


def _written_name(tokens: Tokens) -> str:
    token = tokens.peek()
    if token.kind == "word":
        # Bare up to a space or parenthesis, as the contract has it: alice-1 is more than one token.
        found = _BARE_NAME.match(tokens.sql, token.start)
        assert found is not None, "a word has a letter"
        while not tokens.at_end and tokens.peek().start < found.end():
            tokens.take()
        return found[0]
    if token.kind == "quoted":
        return tokens.take().text[1:-1].replace('""', '"')
    return tokens.string("a user's name")


def _role(tokens: Tokens) -> Role:
    written = _written_name(tokens)
    role = _ROLES.get(written.lower())
    if role is None:
        raise InvalidSql(f"Invalid role '{written[:60]}'; use user, service, dba or system")
    return role


def _identity(tokens: Tokens) -> str:
    """Take who the account is at its issuer, as JSON, and return it as it is stored."""
    if tokens.sees("ROLE"):
        raise InvalidSql(
            'an OAuth account needs both provider and subject: WITH OAUTH \'{"provider":"…","subject":"…"}\''
        )
    text = tokens.string("the provider and subject as JSON in quotes")
    try:
        identity = msgspec.json.decode(text, type=Identity)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidSql(
            f"an OAuth account needs both provider and subject as JSON texts: {error}"
        ) from error
    if not identity.provider or not identity.subject:
        raise InvalidSql("an OAuth account needs both provider and subject")
    return msgspec.json.encode(identity).decode()
