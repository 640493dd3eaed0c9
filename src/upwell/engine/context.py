"""Contexts of the query engine: one for each plan, with its dialect, its limits and our functions.

Law: a context knows nothing but what it is told, and may run nothing but queries.
"""

from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext, SQLOptions, udf

from upwell.engine import checked
from upwell.engine.json_value import FUNCTIONS
from upwell.engine.refusal import CATALOG, QUERY_BYTES_MAX

_FUNCTIONS = {
    prefix: [
        (name, udf(call, list(arguments), result, "immutable", name))
        for name, arguments, result, call in made
    ]
    for prefix, made in (("json_", FUNCTIONS), ("checked_", checked.FUNCTIONS))
}
"""Ours, by what the names of each kind begin with."""
# It drops an empty branch of a union, and then takes columns of the other for those of another table.
_FAULTY_RULES = ("propagate_empty_relation",)
ONLY_QUERIES = SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)


def context_of(namespace: str, text: str = "") -> SessionContext:
    """Return a context whose names without a namespace are of `namespace`, with what `text` calls."""
    # Contexts are cheap (56 µs) and are never shared: a kept plan would return the rows of its time.
    config = (
        SessionConfig()
        .with_target_partitions(1)
        .with_create_default_catalog_and_schema(False)
        .with_default_catalog_and_schema(CATALOG, namespace)
        .set("datafusion.sql_parser.dialect", "PostgreSQL")
        # It refuses plans in which it knows less of NULLs after optimizing them than before.
        .set("datafusion.execution.skip_physical_aggregate_schema_check", "true")
    )
    # What sorts, joins and groups may hold; sorts and groups go on in temporary files beyond it.
    runtime = RuntimeEnvBuilder().with_disk_manager_os().with_fair_spill_pool(QUERY_BYTES_MAX)
    context = SessionContext(config, runtime)
    for rule in _FAULTY_RULES:
        context.remove_optimizer_rule(rule)
    for prefix, functions in _FUNCTIONS.items():
        if prefix in text:
            for name, function in functions:
                if name in text:
                    context.register_udf(function)
    return context
