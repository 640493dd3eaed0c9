"""A definition gives each partition a directory of its own, below the storage's root, and holds no secret."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upwell.errors import InvalidOperation
from upwell.storage.definition import Storage, StorageType, check_template, checked_id, read_settings
from upwell.storage.place import Partition, Place
from upwell.types import SHARED, TableId, user_owner

NAMES = st.text(st.characters(), max_size=12)
TEMPLATE_PARTS = """
    {namespace} ns={namespace} {tableName} t_{table_name}.d {userId} u{user_id}x {shard} fixed year=2026
"""
PARTS = st.sampled_from(TEMPLATE_PARTS.split())


def storage(**templates: str) -> Storage:
    return Storage("s", StorageType.FILESYSTEM, "s", "/mnt/s", **templates)


def user_partition(namespace: str, table: str, user: str) -> Partition:
    return Partition(namespace, table, TableId(1), user_owner(user))


@given(
    st.lists(PARTS, min_size=1, max_size=6), st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES)
)
def test_a_template_that_is_accepted_keeps_partitions_apart_and_inside(
    parts: list[str], one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    template = "/".join(parts)
    try:
        check_template(template, is_user=True)
    except InvalidOperation:
        assert not ("namespace}" in template and "able" in template and "user" in template.lower())
        return
    made = storage(user_template=template)
    places = [made.place_of(user_partition(*names)) for names in (one, other)]
    assert (places[0] == places[1]) == (one == other)
    for place in places:
        assert place.storage == "s"
        assert len(place.directory.split("/")) == len(parts)
        assert re.fullmatch(r"[A-Za-z0-9_%=./-]+", place.directory)
        assert not any(part.startswith(".") for part in place.directory.split("/"))


def test_aliases_mean_the_same() -> None:
    one = storage(user_template="{namespace}/{tableName}/{userId}")
    other = storage(user_template="{namespace_id}/{table_name}/{user_id}")
    partition = user_partition("App", "todo", "al/ice")
    assert one.place_of(partition) == other.place_of(partition) == Place("s", "%41pp/todo/al%2fice")
    shared = Partition("app", "todo", TableId(1), SHARED)
    assert storage(shared_template="x/{namespace}/{table}").place_of(shared) == Place("s", "x/app/todo")


@pytest.mark.parametrize("written", ["", "a b", "-a", "../x", "a/b", "a" * 65, "é"])
def test_ids(written: str) -> None:
    with pytest.raises(InvalidOperation):
        checked_id(written)
    assert checked_id("S3-Archive_1") == "s3-archive_1"


@pytest.mark.parametrize(
    ("storage_type", "config", "credentials"),
    [
        ("s3", '{"endpoint": "ftp://x"}', None),
        ("s3", '{"endpoint": "https://key:secret@host"}', None),
        ("s3", '{"timeout_s": 0}', None),
        ("s3", '{"endpoint": "http://localhost:9000"}', None),
        ("s3", '{"timeout_s": "soon"}', None),
        ("s3", '{"allow_http": "perhaps"}', None),
        ("s3", '{"type": "gcs"}', None),
        ("s3", "[]", None),
        ("s3", None, '{"access_key_id": "env:A"}'),
        ("s3", None, '{"access_key_id": "env:A", "secret_access_key": "AKIA1234"}'),
        ("s3", None, '{"access_key_id": "env:A", "secret_access_key": 7}'),
        ("s3", None, '{"region": "x"}'),
        ("gcs", None, '{"service_account_key": "{}"}'),
        ("azure", None, '{"account_key": "env:AZURE_KEY"}'),
        ("filesystem", None, '{"access_key_id": "env:A"}'),
    ],
)
def test_settings_that_are_refused_are_not_repeated(
    storage_type: str, config: str | None, credentials: str | None
) -> None:
    with pytest.raises(InvalidOperation) as refused:
        read_settings(StorageType(storage_type), config, credentials)
    assert not {"AKIA1234", "secret@host", "perhaps", "soon"} & set(re.findall(r"[\w@]+", str(refused.value)))


def test_settings_of_both_clauses_and_of_other_programs() -> None:
    config = {
        "type": "s3",
        "endpoint": "http://localhost:9000",
        "allow_http": True,
        "access_key": "env:AWS_A",
    }
    credentials = {"secret_key": "file:s3/secret"}
    assert read_settings(StorageType.S3, json.dumps(config), json.dumps(credentials), "eu-west-1") == (
        {"region": "eu-west-1", "endpoint": "http://localhost:9000", "allow_http": "true"},
        {"access_key_id": "env:AWS_A", "secret_access_key": "file:s3/secret"},
    )
