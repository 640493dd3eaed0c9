"""The grammar of CREATE VIEW and DROP VIEW.

Law: the query keeps its text; what it names is looked up when the view is made, and by each who reads it.
"""

from upwell.errors import InvalidSql
from upwell.sql.change import QUERY_STARTS
from upwell.sql.column import NAME
from upwell.sql.lex import Tokens
from upwell.sql.tree import CreateViewTree, DropViewTree


def is_create_view(tokens: Tokens) -> bool:
    return tokens.sees("CREATE", "VIEW") or tokens.sees("CREATE", "OR", "REPLACE", "VIEW")


def read_create_view(tokens: Tokens) -> CreateViewTree:
    """Read CREATE [OR REPLACE] VIEW [IF NOT EXISTS] name [(columns)] AS query."""
    tokens.expect("CREATE")
    replaces = tokens.accept("OR", "REPLACE")
    tokens.expect("VIEW")
    if_not_exists = tokens.accept("IF", "NOT", "EXISTS")
    if replaces and if_not_exists:
        raise InvalidSql("OR REPLACE and IF NOT EXISTS exclude each other; write one of them")
    name = tokens.qualified("a view's name")
    if not NAME.fullmatch(name[1]):
        raise InvalidSql(f"view name '{name[1][:60]}' may only have letters, digits and _, 128 at most")
    labels = tuple(tokens.listed(lambda: tokens.name("a column"))) if tokens.sees("(") else ()
    tokens.expect("AS")
    if tokens.peek().word not in QUERY_STARTS:
        raise tokens.unexpected("a query after AS")
    text = tokens.fragment(frozenset({";"})).text
    return CreateViewTree(name, labels, text, replaces, if_not_exists)


def read_drop_view(tokens: Tokens) -> DropViewTree:
    """Read DROP VIEW [IF EXISTS] name."""
    tokens.expect("DROP", "VIEW")
    if_exists = tokens.accept("IF", "EXISTS")
    return DropViewTree(tokens.qualified("a view's name"), if_exists)
