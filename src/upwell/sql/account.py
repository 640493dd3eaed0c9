"""The grammar of statements about accounts: CREATE USER."""

from upwell.engine.catalog import Role
from upwell.errors import InvalidSql
from upwell.sql.lex import Tokens
from upwell.sql.statements import CreateUser

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


def read_create_user(tokens: Tokens) -> CreateUser:
    tokens.expect("CREATE", "USER")
    name = read_user_name(tokens)
    tokens.expect("WITH")
    password = None
    if tokens.accept("PASSWORD"):
        password = tokens.string("the password in quotes")
    elif not tokens.accept("INTERNAL"):
        raise InvalidSql("CREATE USER takes WITH PASSWORD '…' or WITH INTERNAL; OAUTH is not supported yet")
    tokens.expect("ROLE")
    written = read_user_name(tokens)
    role = _ROLES.get(written.lower())
    if role is None:
        raise InvalidSql(f"Invalid role '{written[:60]}'; use user, service, dba or system")
    email = tokens.string("the e-mail address in quotes") if tokens.accept("EMAIL") else None
    return CreateUser(name, password, role, email)


def read_user_name(tokens: Tokens) -> str:
    """Take a user's name, bare or in quotes; unlike names of tables it keeps its case."""
    token = tokens.peek()
    if token.kind == "word":
        return tokens.take().text
    return tokens.name() if token.kind == "quoted" else tokens.string("a name")
