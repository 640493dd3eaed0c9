"""Definitions of storages: what CREATE STORAGE says, checked once, and the directories that follow from it.

Law: two partitions never share a directory of a storage by one template, and no template leaves the
storage's root: each part of its path has at most one placeholder, and every name is encoded. A definition
never holds a secret, only where the server finds it: `env:NAME` or `file:NAME`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from upwell.decodable import decodable
from upwell.errors import InvalidOperation
from upwell.storage.place import ENCODED, LOCAL, MANIFEST_COPY, Partition, Place, encode_name
from upwell.types import owner_user

SHARED_TEMPLATE = "{namespace}/{tableName}"
USER_TEMPLATE = "{namespace}/{tableName}/{userId}"
ID_CHARS_MAX = 64
TEXT_CHARS_MAX = 1_024
TEMPLATE_CHARS_MAX = 512
LITERAL_CHARS_MAX = 40
MARKER = "upwell-storage.json"
"""The file at a storage's root that names the server whose it is."""

_ID = re.compile(r"[a-z0-9_][a-z0-9_-]*")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")
_BUCKET = re.compile(r"[A-Za-z0-9_.-]{1,255}")
_LITERAL = re.compile(r"[A-Za-z0-9_=.-]*")
_NAMES = {
    **dict.fromkeys(("namespace", "namespace_id", "namespaceId"), "namespace"),
    **dict.fromkeys(("tableName", "table_name", "table"), "table"),
    **dict.fromkeys(("userId", "user_id", "user"), "user"),
    "shard": "shard",
}
_REFERENCE = re.compile(r"(?:env:[A-Za-z_][A-Za-z0-9_]*|file:[^\0]+)")
# Names that other programs use for the same thing.
_SAME = {"access_key": "access_key_id", "secret_key": "secret_access_key"}


class StorageType(Enum):
    FILESYSTEM = "filesystem"
    S3 = "s3"
    GCS = "gcs"
    AZURE = "azure"

    @property
    def scheme(self) -> str:
        """What its base directory begins with."""
        return {StorageType.FILESYSTEM: "/", StorageType.S3: "s3://", StorageType.GCS: "gs://",
                StorageType.AZURE: "az://"}[self]  # fmt: skip


_CREDENTIALS = {
    StorageType.FILESYSTEM: (),
    StorageType.S3: ("access_key_id", "secret_access_key", "session_token"),
    StorageType.GCS: ("service_account_key",),
    StorageType.AZURE: ("account_key",),
}
_SETTINGS = {
    StorageType.FILESYSTEM: (),
    StorageType.S3: ("endpoint", "region", "allow_http", "virtual_hosted_style", "timeout_s", "retries_max"),
    StorageType.GCS: ("allow_http", "timeout_s", "retries_max"),
    StorageType.AZURE: ("account_name", "endpoint", "allow_http", "timeout_s", "retries_max"),
}


@decodable
@dataclass(frozen=True)
class Storage:
    """A storage as the catalog has it. `base` is an absolute directory, or `s3://bucket/prefix`.

    `credentials` are references: the key's name → `env:NAME` or `file:NAME`.
    """

    id: str
    type: StorageType
    name: str
    base: str
    description: str | None = None
    shared_template: str = SHARED_TEMPLATE
    user_template: str = USER_TEMPLATE
    config: Mapping[str, str] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict)
    created_at_us: int = 0
    updated_at_us: int = 0

    @property
    def is_remote(self) -> bool:
        return self.type is not StorageType.FILESYSTEM

    def place_of(self, partition: Partition) -> Place:
        """Return where new files of a partition go."""
        user = owner_user(partition.owner)
        names = {"namespace": partition.namespace, "table": partition.table, "user": user or ""}
        return Place(self.id, _filled(self.shared_template if user is None else self.user_template, names))

    def template_of(self, namespace: str, table: str, *, is_user: bool) -> str:
        """Return the template of a table's directories, in which only its users' names are missing."""
        template = self.user_template if is_user else self.shared_template
        return _filled(template, {"namespace": namespace, "table": table})


def local_storage(base: str, *, time_us: int) -> Storage:
    """Return the storage that is always there."""
    return Storage(LOCAL, StorageType.FILESYSTEM, "Local", base, created_at_us=time_us, updated_at_us=time_us)


def checked_id(written: str) -> str:
    """Return a storage's id, folded to lower case; raise `InvalidOperation` if it can't be one."""
    name = written.lower()
    if not _ID.fullmatch(name) or len(name) > ID_CHARS_MAX:
        raise InvalidOperation(
            f"storage id '{written[:60]}' may only have letters, digits, _ and -, {ID_CHARS_MAX} at most"
        )
    return name


def checked(storage: Storage) -> Storage:
    """Return the definition if it makes sense; raise `InvalidOperation` if it doesn't."""
    for what, text in (("NAME", storage.name), ("DESCRIPTION", storage.description or "-")):
        if not text.strip() or len(text) > TEXT_CHARS_MAX:
            raise InvalidOperation(f"{what} of a storage has 1 to {TEXT_CHARS_MAX} characters")
    _check_base(storage)
    check_template(storage.shared_template, is_user=False)
    check_template(storage.user_template, is_user=True)
    return storage


def refuse_meeting(storage: Storage, others: Iterable[Storage]) -> None:
    """Raise `InvalidOperation` if another storage can give a table, or a user's part, the same directory.

    A table that is moved from one to the other would lose what it takes for the files it left.
    """
    for other in others:
        if other.id != storage.id and _storages_may_meet(storage, other):
            raise InvalidOperation(
                f"storage '{storage.id}' and storage '{other.id}' can give a table the same directory; "
                "choose another place, or templates that keep them apart"
            )


def _storages_may_meet(one: Storage, other: Storage) -> bool:
    return may_be_one(one, one.shared_template, other, other.shared_template) or may_be_one(
        one, one.user_template, other, other.user_template
    )


def may_be_one(one: Storage, mine: str, other: Storage, theirs: str) -> bool:
    """Whether two templates of two storages, or of one, can give one and the same directory."""
    if one.type is not other.type or one.config.get("endpoint") != other.config.get("endpoint"):
        return False
    places = f"{one.base}/{mine}", f"{other.base}/{theirs}"
    # Some file systems fold case.
    return _may_meet(*(places if one.is_remote else map(_folded, places)))


def _folded(path: str) -> str:
    """Return a path in lower case, but for its placeholders."""
    return "".join(part if part.startswith("{") else part.lower() for part in re.split(r"(\{\w+\})", path))


def check_template(template: str, *, is_user: bool) -> None:
    """Raise `InvalidOperation` unless the template gives each partition a directory of its own."""
    what = "USER_TABLES_TEMPLATE" if is_user else "SHARED_TABLES_TEMPLATE"
    if len(template) > TEMPLATE_CHARS_MAX:
        raise InvalidOperation(f"{what} has {TEMPLATE_CHARS_MAX} characters at most")
    found: list[str] = []
    for part in template.split("/"):
        names = _PLACEHOLDER.findall(part)
        rest = _PLACEHOLDER.sub("", part)
        if not part or part.startswith(".") or not _LITERAL.fullmatch(rest) or len(rest) > LITERAL_CHARS_MAX:
            raise InvalidOperation(
                f"{what} is a relative path like '{USER_TEMPLATE if is_user else SHARED_TEMPLATE}': parts of "
                f"letters, digits, _ = . - and placeholders, none empty, none that begins with a dot"
            )
        unknown = [name for name in names if name not in _NAMES]
        if unknown:
            raise InvalidOperation(
                f"{what} has an unknown placeholder {{{unknown[0]}}}; there are "
                "{namespace}, {tableName}, {userId} and {shard}"
            )
        if part in (MARKER, MANIFEST_COPY):
            raise InvalidOperation(f"{what} has a part {part}; that is a file of the server")
        if len(names) > 1:
            raise InvalidOperation(f"{what} has two placeholders in one part of the path; put a / between")
        found += [_NAMES[name] for name in names]
    for needed in ("namespace", "tableName", "userId") if is_user else ("namespace", "tableName"):
        if _NAMES[needed] not in found:
            raise InvalidOperation(f"{what} must contain {{{needed}}}: two tables or users would share files")
    if not is_user and {"user", "shard"}.intersection(found):
        raise InvalidOperation(f"{what} can't have {{userId}} or {{shard}}: a SHARED table has no user")


def read_settings(
    storage_type: StorageType, config: str | None, credentials: str | None, region: str | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return settings and references to secrets from the JSON of CONFIG and CREDENTIALS.

    Keys of either stand in both. Raises `InvalidOperation`, which never repeats a value.
    """
    settings = {} if region is None else {"region": _setting("region", region)}
    references: dict[str, str] = {}
    for what, text in (("CONFIG", config), ("CREDENTIALS", credentials)):
        for written, value in _json_object(what, text).items():
            key = _SAME.get(written, written)
            if key in _CREDENTIALS[storage_type]:
                references[key] = _reference(key, value)
            elif key in _SETTINGS[storage_type] and what == "CONFIG":
                settings[key] = _setting(key, value)
            elif not (key == "type" and value == storage_type.value):
                known = _CREDENTIALS[storage_type] + (_SETTINGS[storage_type] if what == "CONFIG" else ())
                raise InvalidOperation(
                    f"{what} of a {storage_type.value} storage has no key '{written[:60]}'; "
                    f"it has {', '.join(known) or 'none'}"
                )
    if settings.get("endpoint", "").startswith("http://") and settings.get("allow_http") != "true":
        raise InvalidOperation("an endpoint without TLS needs allow_http: true in CONFIG")
    if (
        storage_type is StorageType.S3
        and len({"access_key_id", "secret_access_key"} & references.keys()) == 1
    ):
        raise InvalidOperation("CREDENTIALS need both access_key_id and secret_access_key, or neither")
    if storage_type is StorageType.AZURE and "account_name" not in settings:
        raise InvalidOperation("CONFIG of an azure storage needs account_name")
    return settings, references


def _may_meet(one: str, other: str) -> bool:
    parts, others = one.split("/"), other.split("/")
    return len(parts) == len(others) and all(map(_may_be_same, parts, others))


def _may_be_same(part: str, other: str) -> bool:
    """Whether two parts of templates can be filled to one name; a placeholder stands for an encoded name."""
    (head, *tail), (other_head, *other_tail) = _PLACEHOLDER.split(part), _PLACEHOLDER.split(other)
    if not tail and not other_tail:
        return head == other_head
    if not tail:
        return _fits(head, other_head, other_tail[-1])
    if not other_tail:
        return _fits(other_head, head, tail[-1])
    # A name can only make up for what one of the two has more, in front and behind.
    for ends in ((head, other_head), (tail[-1][::-1], other_tail[-1][::-1])):
        short, long = sorted(ends, key=len)
        if not _fits(long, short, ""):
            return False
    return True


def _fits(text: str, head: str, tail: str) -> bool:
    """Whether a text is `head`, then a piece of an encoded name, then `tail`."""
    middle = text.removeprefix(head).removesuffix(tail)
    return text == head + middle + tail and ENCODED.fullmatch(middle) is not None


def _check_base(storage: Storage) -> None:
    base, scheme = storage.base, storage.type.scheme
    rest = base.removeprefix(scheme)
    if not base.startswith(scheme) or not rest:
        like = "an absolute directory like /mnt/x" if scheme == "/" else f"a URL like {scheme}bucket/prefix"
        raise InvalidOperation(f"PATH of a {storage.type.value} storage is {like}")
    if "\0" in base or any(part in ("", ".", "..") for part in rest.split("/")):
        raise InvalidOperation("PATH of a storage has no empty parts, no '.' and no '..'")
    if len(base) > TEXT_CHARS_MAX:
        raise InvalidOperation(f"PATH of a storage has {TEXT_CHARS_MAX} characters at most")
    if storage.is_remote and not _BUCKET.fullmatch(rest.split("/")[0]):
        raise InvalidOperation(
            "a bucket's name has only letters, digits, _ . and -; secrets are named in CREDENTIALS"
        )


def _filled(template: str, names: Mapping[str, str]) -> str:
    def filled(match: re.Match[str]) -> str:
        name = _NAMES[match[1]]
        if name == "shard" and "user" in names:
            return hashlib.sha256(names["user"].encode("utf-8", "surrogatepass")).hexdigest()[:2]
        return encode_name(names[name]) if name in names else match[0]

    return _PLACEHOLDER.sub(filled, template)


def _json_object(what: str, text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidOperation(f"{what} must be a JSON object in quotes")
    return found


def _reference(key: str, value: object) -> str:
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise InvalidOperation(
            f"{key} must say where the secret is, not what it is: 'env:NAME' for a variable of the server's "
            "environment, 'file:NAME' for a file of its secrets_dir"
        )
    return value


def _setting(key: str, value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    check, want = _CHECKS[key]
    if isinstance(value, (dict, list)) or not check(text):
        raise InvalidOperation(f"{key} in CONFIG must be {want}")
    return text


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4


_FLAG: tuple[Callable[[str], object], str] = (("true", "false").__contains__, "true or false")
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(?:/[A-Za-z0-9._~/-]*)?")
_CHECKS: dict[str, tuple[Callable[[str], object], str]] = {
    "endpoint": (_URL.fullmatch, "a URL without user and password, like 'https://s3.example.com'"),
    "region": (re.compile(r"[A-Za-z0-9-]{1,64}").fullmatch, "a region's name"),
    "account_name": (re.compile(r"[a-z0-9]{1,64}").fullmatch, "the name of the storage account"),
    "allow_http": _FLAG,
    "virtual_hosted_style": _FLAG,
    "timeout_s": (lambda text: _is_number(text) and int(text) > 0, "a whole number of seconds above 0"),
    "retries_max": (_is_number, "a whole number"),
}
