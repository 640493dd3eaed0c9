"""The tables of the fleet, on the server and on the phones: parents, cascades, rows that refer to themselves,
tables that refer to each other (users and posts), and bytes, whose keys are blobs on the phones.
"""

USER = "ada"
TABLES = ["users", "posts", "comments", "folders", "files"]
SERVER_TABLES = (
    "users (id UUID PRIMARY KEY, value TEXT, note TEXT, parent UUID)",
    "posts (id UUID PRIMARY KEY, value TEXT, note TEXT, parent UUID REFERENCES app.users (id))",
    "comments (id UUID PRIMARY KEY, value TEXT, note TEXT,"
    " parent UUID REFERENCES app.posts (id) ON DELETE CASCADE)",
    "folders (id UUID PRIMARY KEY, value TEXT, note TEXT, parent UUID REFERENCES app.folders (id))",
    "files (id UUID PRIMARY KEY, value TEXT, note TEXT,"
    " parent UUID REFERENCES app.posts (id) ON DELETE SET NULL, data BYTES)",
)
SERVER_REFERENCES = ("users ADD FOREIGN KEY (parent) REFERENCES app.posts (id) ON DELETE SET NULL",)
APP_TABLES = """
CREATE TABLE users (
    id TEXT PRIMARY KEY, value TEXT, note TEXT, parent TEXT REFERENCES posts (id) ON DELETE SET NULL);
CREATE TABLE posts (id TEXT PRIMARY KEY, value TEXT, note TEXT, parent TEXT REFERENCES users (id));
CREATE TABLE comments (
    id TEXT PRIMARY KEY, value TEXT, note TEXT, parent TEXT REFERENCES posts (id) ON DELETE CASCADE);
CREATE TABLE folders (id TEXT PRIMARY KEY, value TEXT, note TEXT, parent TEXT REFERENCES folders (id));
CREATE TABLE files (
    id BLOB PRIMARY KEY NOT NULL, value TEXT, note TEXT,
    parent TEXT REFERENCES posts (id) ON DELETE SET NULL, data BLOB);
"""
PARENTS = {"users": "posts", "posts": "users", "comments": "posts", "folders": "folders", "files": "posts"}

CHILDREN = {"users": ["posts"], "posts": ["comments", "files", "users"], "folders": ["folders"]}


def key(table: str, number: int) -> str:
    """Return the key of a row as the server shows it."""
    return f"00000000-0000-4000-8000-{TABLES.index(table):06d}{number:06d}"


def columns_of(table: str) -> str:
    """Return the columns of a table, the key first, as SQL."""
    parent, data = ", parent" if table in PARENTS else "", ", data" if table == "files" else ""
    return f"id, value, note{parent}{data}"


def app_key(table: str, number: int) -> str | bytes:
    """Return the key of a row as the phones have it."""
    pk = key(table, number)
    return bytes.fromhex(pk.replace("-", "")) if table == "files" else pk
