"""A context that is lent again has forgotten the query before, and keeps its limits."""

import pyarrow as pa
import pytest
from datafusion import SessionContext
from datafusion.catalog import Catalog, Schema
from datafusion.catalog import Table as FusionTable

from upwell.engine import context as contexts
from upwell.engine.context import IDLE_MAX, Contexts
from upwell.engine.refusal import CATALOG
from upwell.errors import QueryFailure


def know(context: SessionContext, namespace: str, name: str, values: list[int]) -> None:
    catalog = Catalog.memory_catalog()
    context.register_catalog_provider(CATALOG, catalog)
    catalog.register_schema(namespace, Schema.memory_schema())
    table = FusionTable(context.from_arrow(pa.table({"n": values})))
    catalog.schema(namespace).register_table(name, table)


def total(context: SessionContext, text: str) -> object:
    (batch,) = context.sql(text).collect()
    return batch.column(0)[0].as_py()


def test_the_next_query_sees_its_own_tables_only() -> None:
    lent = Contexts()
    with lent.lent("app", "") as first:
        know(first, "app", "t", [1, 2])
        know(first, "app", "u", [5])
        assert total(first, "SELECT sum(n) FROM u") == 5
    assert list(first.catalog(CATALOG).schema_names()) == []
    with lent.lent("app", "") as second:
        assert second is first
        know(second, "app", "t", [3, 4])
        assert total(second, "SELECT sum(n) FROM t") == 7
        with pytest.raises(Exception, match="u"):
            second.sql("SELECT sum(n) FROM u")


def test_a_context_is_lent_to_one_at_a_time_and_for_one_namespace() -> None:
    lent = Contexts()
    with lent.lent("app", "") as one, lent.lent("app", "") as two:
        assert one is not two
    with lent.lent("other", "") as other:
        assert other not in (one, two)
        know(other, "other", "t", [1])
        assert total(other, "SELECT sum(n) FROM t") == 1


def test_a_context_whose_query_failed_is_not_lent_again() -> None:
    lent = Contexts()
    with pytest.raises(QueryFailure), lent.lent("app", "") as failed:
        raise QueryFailure("it failed")
    with lent.lent("app", "") as next_:
        assert next_ is not failed


def test_few_contexts_wait() -> None:
    lent = Contexts()
    for number in range(IDLE_MAX + 3):
        with lent.lent(f"n{number}", ""):
            pass
    assert [namespace for namespace, _ in lent._idle] == [f"n{number}" for number in range(3, IDLE_MAX + 3)]


def test_each_query_has_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "QUERY_BYTES_MAX", 200_000)
    lent = Contexts()
    small = "SELECT count(*) FROM range(0, 10) a JOIN range(0, 10) b ON a.value = b.value"
    large = small.replace("10)", "1000000)")
    for _ in range(3):
        with lent.lent("app", "") as context:
            assert total(context, small) == 10
    with pytest.raises(Exception, match="Resources exhausted"), lent.lent("app", "") as context:
        total(context, large)
