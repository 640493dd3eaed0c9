"""What operators see of a server: metrics, logs with request ids, health, and the OpenAPI document.

The document is tried against the server by schemathesis: made-up requests get documented answers only.
"""

import re
import uuid
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.checks import positive_data_acceptance

from upwell.testing.wire import SQL, Site


def _metrics(site: Site) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples by name and label values."""
    answer = site.wire().call("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = (
                sample.value
            )
    return found


def test_metrics_count_requests_and_changes(site: Site, namespace: str) -> None:
    site.root.run(f"CREATE USER TABLE {namespace}.t (id INT PRIMARY KEY)")
    before = _metrics(site)
    for row in range(5):
        site.root.run(f"INSERT INTO {namespace}.t VALUES ({row})")
    site.root.sql("SELECT nonsense").refused(400, "SQL_EXECUTION_ERROR")
    site.wire().call("GET", "/nowhere-" + uuid.uuid4().hex)
    after = _metrics(site)

    def grown(name: str, *labels: str) -> float:
        return after[name].get(labels, 0) - before[name].get(labels, 0)

    assert grown("upwell_http_requests_total", SQL, "200") == 5
    assert grown("upwell_http_requests_total", SQL, "400") == 1
    assert grown("upwell_http_requests_total", "other", "404") == 1
    assert grown("upwell_http_request_seconds_count", SQL) == 6
    assert grown("upwell_http_request_seconds_bucket", "+Inf", SQL) == 6
    assert 0 < grown("upwell_http_request_seconds_sum", SQL) < 60
    assert grown("upwell_changes_total") == 5
    assert grown("upwell_commits_total") >= 5
    assert grown("upwell_log_syncs_total") >= 5
    assert after["upwell_read_only"] == {(): 0}
    tables = site.root.run("SELECT COUNT(*) FROM system.tables WHERE namespace_id <> 'system'").cell
    assert after["upwell_tables"][()] == float(tables)
    assert after["process_resident_memory_bytes"][()] > 10_000_000
    labels = {value for samples in after.values() for values in samples for value in values}
    assert not any(namespace in label for label in labels), "labels are bounded"


def test_metrics_and_health_are_for_this_machine(site: Site) -> None:
    forwarded = {"X-Forwarded-For": "192.0.2.7"}
    for path, word in (
        ("/metrics", "Metrics"),
        ("/health", "Health endpoint"),
        ("/v1/api/healthcheck", "Health endpoint"),
        ("/v1/api/cluster/health", "Cluster health"),
    ):
        assert site.wire().call("GET", path).status == 200
        refused = site.wire().call("GET", path, headers=forwarded)
        assert (refused.status, set(refused.json)) == (403, {"error"})
        assert word in refused.json["error"]
        assert "localhost-only" in refused.json["error"]
    for path in ("/livez", "/readyz"):
        assert site.wire().call("GET", path, headers=forwarded).status == 200


def test_a_request_keeps_the_id_that_it_came_with(site: Site) -> None:
    given = f"trace-{uuid.uuid4().hex}"
    answer = site.root.call("POST", SQL, {"sql": "SELECT 1"}, headers={"X-Request-ID": given})
    assert answer.headers["x-request-id"] == given
    ids = {site.root.run("SELECT 1").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    for odd in ("", "a b", "x" * 129, "é"):
        fresh = site.root.call("POST", SQL, {"sql": "SELECT 1"}, headers={"X-Request-ID": odd})
        assert fresh.headers["x-request-id"] != odd
        assert re.fullmatch("[0-9a-f]{8}-[0-9a-f]+", fresh.headers["x-request-id"])
    assert site.wire().call("GET", "/nowhere").headers["x-request-id"]


def test_settings_are_shown_without_secrets(site: Site) -> None:
    answer = site.root.run("SELECT name, value FROM system.settings ORDER BY name")
    values = dict(map(tuple, answer.rows))
    assert len(values) > 40
    for secret in (site.server.jwt_secret, site.server.root_password):
        assert secret not in answer.body.decode()
        assert secret not in site.root.run("SELECT * FROM system.server_logs").body.decode()


# OpenAPI


def _document(site: Site) -> dict[str, object]:
    answer = site.wire().call("GET", "/openapi.json")
    assert answer.status == 200
    return answer.json


def test_the_document_has_every_path_of_the_contract(site: Site) -> None:
    document = _document(site)
    assert document["openapi"] == "3.1.0"
    paths = document["paths"]
    assert isinstance(paths, dict)
    auth = {
        f"/v1/api/auth/{name}" for name in ("login", "refresh", "logout", "me", "status", "setup", "device")
    }
    others = {SQL, "/health", "/v1/api/healthcheck", "/v1/api/cluster/health", "/livez", "/readyz"}
    sync = {"/sync/upload", "/sync/download", "/sync/schema-version"}
    assert auth | others | sync <= set(paths)
    for operations in paths.values():
        for operation in operations.values():
            assert operation["summary"]
            assert "200" in operation["responses"]


EXAMPLES = 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("server", ["site", "unshaped"])
def test_made_up_requests_get_documented_answers(request: pytest.FixtureRequest, server: str) -> None:
    """Run last: it signs in with made-up names, and must not lock or change anything that others use."""
    site: Site = request.getfixturevalue(server)
    schema = schemathesis.openapi.from_dict(_document(site))
    schema.config.update(base_url=site.server.url)
    name, wire = site.account("user")
    phone = wire.call("POST", "/v1/api/auth/device", {"device": "phone"}).json["token"]
    tokens = {"access": wire.token, "refresh": site.login(name)["refresh_token"], "device": phone}
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 15, "the document has the product's operations"
    for operation in operations:
        needed = [name for each in operation.definition.raw.get("security", ()) for name in each]
        headers = {"Authorization": f"Bearer {tokens[needed[0]]}"} if needed else {}

        _try(operation, headers)


def _try(operation: Any, headers: dict[str, str]) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        # What a schema can't say, such as which text is SQL, may still be refused.
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

    check()
