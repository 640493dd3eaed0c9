//! What an app does with KalamDB's own client for Rust, unmodified, on a server of ours.
//!
//! `tests/clients/run.py` starts the server and kills it when this program prints `kill`. Each step panics if
//! anything is not as it must be; the last line is `done`.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::time::Duration;

use kalam_client::models::{ChangeEvent, CompressionType, ProtocolOptions, SerializationType};
use kalam_client::{
    AuthProvider, ConnectionOptions, KalamLinkClient, LiveRowsConfig, LiveRowsEvent,
    LiveRowsSubscription, QueryParam, QueryResponse, SeqId, ServerSetupRequest, SubscriptionConfig,
    SubscriptionManager, SubscriptionOptions,
};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(20);
const ROOT: &str = "a-password-of-root";
const ALICE: &str = "Secret123!";

#[tokio::main]
async fn main() {
    let url = std::env::args().nth(1).expect("the server's address");
    set_up(&url).await;
    let root = client(&url, "root", ROOT, ProtocolOptions::default());
    accounts(&url, &root).await;
    values(&root).await;
    errors(&root).await;
    for protocol in [
        ProtocolOptions {
            serialization: SerializationType::Json,
            compression: CompressionType::Gzip,
        },
        ProtocolOptions {
            serialization: SerializationType::Json,
            compression: CompressionType::None,
        },
        ProtocolOptions {
            serialization: SerializationType::MessagePack,
            compression: CompressionType::Gzip,
        },
    ] {
        println!("live by {protocol:?}");
        live_rows(&url, protocol).await;
        live_events(&url, protocol).await;
    }
    a_server_that_is_killed(&url).await;
    println!("done");
}

fn client(url: &str, user: &str, password: &str, protocol: ProtocolOptions) -> KalamLinkClient {
    KalamLinkClient::builder()
        .base_url(url)
        .auth(AuthProvider::basic_auth(user.into(), password.into()))
        .connection_options(ConnectionOptions::default().with_protocol(protocol))
        .timeout(WAIT)
        .build()
        .expect("a client")
}

async fn set_up(url: &str) {
    let nobody = KalamLinkClient::builder()
        .base_url(url)
        .build()
        .expect("a client");
    assert_eq!(
        nobody.health_check().await.expect("health").status,
        "healthy"
    );
    assert!(
        nobody
            .check_setup_status()
            .await
            .expect("status")
            .needs_setup
    );
    let request = ServerSetupRequest::new("dora", "Dora-1234567", ROOT, None);
    nobody.server_setup(request).await.expect("set up");
    assert!(
        !nobody
            .check_setup_status()
            .await
            .expect("status")
            .needs_setup
    );
    let again = ServerSetupRequest::new("dora", "Dora-1234567", ROOT, None);
    assert!(nobody.server_setup(again).await.is_err());
}

async fn accounts(url: &str, root: &KalamLinkClient) {
    let login = root.login("root", ROOT).await.expect("login");
    let refresh = login.refresh_token.expect("a refresh token");
    let renewed = root.refresh_access_token(&refresh).await.expect("refresh");
    assert_eq!(renewed.user.id.as_str(), "root");
    assert!(root.login("root", "not-it").await.is_err());
    assert_eq!(
        root.cluster_health_check()
            .await
            .expect("cluster")
            .nodes
            .len(),
        1
    );

    run(root, "CREATE NAMESPACE IF NOT EXISTS support", &[]).await;
    for user in ["alice", "bob"] {
        run(
            root,
            &format!("CREATE USER {user} WITH PASSWORD '{ALICE}' ROLE 'user'"),
            &[],
        )
        .await;
    }
    let table = "CREATE TABLE support.inbox (id BIGINT PRIMARY KEY DEFAULT SNOWFLAKE_ID(), \
        room TEXT NOT NULL DEFAULT 'main', body TEXT NOT NULL, created_at TIMESTAMP NOT NULL DEFAULT NOW()) \
        WITH (TYPE = 'USER')";
    run(root, table, &[]).await;
    let alice = client(url, "alice", ALICE, ProtocolOptions::default());
    let answer = run(&alice, "SELECT CURRENT_USER() AS me", &[]).await;
    assert_eq!(cells(&answer), [[json!("alice")]]);
    run(
        &alice,
        "INSERT INTO support.inbox (id, body) VALUES (1, 'mine')",
        &[],
    )
    .await;
    let as_alice = "EXECUTE AS USER 'alice' (SELECT body FROM support.inbox)";
    assert_eq!(cells(&run(root, as_alice, &[]).await), [[json!("mine")]]);
    let bob = client(url, "bob", ALICE, ProtocolOptions::default());
    assert!(cells(&run(&bob, "SELECT * FROM support.inbox", &[]).await).is_empty());
    run(&alice, "DELETE FROM support.inbox WHERE id = 1", &[]).await;
}

async fn values(root: &KalamLinkClient) {
    let table = "CREATE TABLE support.kinds (id BIGINT PRIMARY KEY, flag BOOLEAN, ratio DOUBLE, name TEXT, doc JSON) \
        WITH (TYPE = 'SHARED')";
    run(root, table, &[]).await;
    let params = [
        QueryParam::Int(i64::MAX),
        QueryParam::Bool(true),
        QueryParam::Float(1.5),
        QueryParam::Text("grün".into()),
        QueryParam::Text(json!({"a": [1, 2]}).to_string()),
    ];
    run(
        root,
        "INSERT INTO support.kinds VALUES ($1, $2, $3, $4, $5)",
        &params,
    )
    .await;
    let nothing = [QueryParam::Int(2), QueryParam::Null];
    run(
        root,
        "INSERT INTO support.kinds (id, name) VALUES ($1, $2)",
        &nothing,
    )
    .await;
    let answer = root
        .execute_query(
            "SELECT id, flag, ratio, name FROM kinds ORDER BY id",
            None,
            None,
            Some("support"),
        )
        .await
        .expect("a query in a namespace");
    let rows = cells(&answer);
    assert_eq!(rows[0], [json!("2"), Value::Null, Value::Null, Value::Null]);
    assert_eq!(
        rows[1],
        [
            json!("9223372036854775807"),
            json!(true),
            json!(1.5),
            json!("grün")
        ]
    );
    let two = run(root, "SELECT 1 AS a; SELECT 2 AS a", &[]).await;
    assert_eq!(two.results.len(), 2);
    run(root, "STORAGE FLUSH TABLE support.kinds", &[]).await;
    for probe in [
        "SELECT name FROM system.namespaces LIMIT 1",
        "SELECT table_name, namespace_id FROM system.tables",
        "SELECT table_name, column_name FROM information_schema.columns ORDER BY table_name LIMIT 3",
        "SELECT metric_name, metric_value FROM system.stats ORDER BY metric_name LIMIT 5000",
        "SELECT cluster_id, node_id, role, status, api_addr, is_self, is_leader, version FROM system.cluster",
    ] {
        assert!(!cells(&run(root, probe, &[]).await).is_empty(), "{probe}");
    }
}

async fn errors(root: &KalamLinkClient) {
    for (sql, code) in [
        ("SELEC 1", "INVALID_SQL"),
        ("SELECT * FROM support.nothing", "SQL_EXECUTION_ERROR"),
        (
            "INSERT INTO support.kinds (id) VALUES (2)",
            "SQL_EXECUTION_ERROR",
        ),
    ] {
        let error = root
            .execute_query(sql, None, None, None)
            .await
            .expect_err(sql);
        assert!(format!("{error:?}").contains(code), "{sql}: {error:?}");
    }
    assert!(
        root.live_events("SELECT * FROM support.nothing")
            .await
            .is_err()
    );
    assert!(
        root.live_events("SELECT count(*) FROM support.kinds")
            .await
            .is_err()
    );
}

/// 1,000 rows in batches of 64, then an insert, an update and a delete: always the rows of the SELECT.
async fn live_rows(url: &str, protocol: ProtocolOptions) {
    let alice = client(url, "alice", ALICE, protocol);
    run(&alice, "DELETE FROM support.inbox", &[]).await;
    let many: Vec<String> = (1..=1_000)
        .map(|id| format!("({id}, 'body {id}')"))
        .collect();
    run(
        &alice,
        &format!(
            "INSERT INTO support.inbox (id, body) VALUES {}",
            many.join(",")
        ),
        &[],
    )
    .await;
    let mut config = SubscriptionConfig::new(
        "rows",
        "SELECT id, body FROM support.inbox WHERE room = 'main'",
    );
    config.options = Some(SubscriptionOptions::new().with_batch_size(64));
    let live = alice.live_with_config(
        config,
        LiveRowsConfig {
            limit: Some(5_000),
            ..LiveRowsConfig::default()
        },
    );
    let mut live = live.await.expect("a live query");
    let mut expected: BTreeMap<String, String> = (1..=1_000)
        .map(|id| (id.to_string(), format!("body {id}")))
        .collect();
    shows(&mut live, &expected).await;
    run(
        &alice,
        "INSERT INTO support.inbox (id, body) VALUES (2000, 'new')",
        &[],
    )
    .await;
    expected.insert("2000".into(), "new".into());
    shows(&mut live, &expected).await;
    run(
        &alice,
        "UPDATE support.inbox SET body = 'changed' WHERE id = 7",
        &[],
    )
    .await;
    expected.insert("7".into(), "changed".into());
    shows(&mut live, &expected).await;
    run(&alice, "DELETE FROM support.inbox WHERE id <= 500", &[]).await;
    expected.retain(|id, _| id.parse::<u32>().expect("a number") > 500);
    shows(&mut live, &expected).await;
    live.close().await.expect("closed");
    alice.disconnect().await;
}

/// The low-level events in their order, another user's rows never, and a resume that has what was missed.
async fn live_events(url: &str, protocol: ProtocolOptions) {
    let alice = client(url, "alice", ALICE, protocol);
    let bob = client(url, "bob", ALICE, protocol);
    run(&alice, "DELETE FROM support.inbox", &[]).await;
    let config = |id: &str| SubscriptionConfig::new(id, "SELECT * FROM support.inbox");
    let mut events = alice
        .live_events_with_config(config("events"))
        .await
        .expect("events");
    run(
        &bob,
        "INSERT INTO support.inbox (id, body) VALUES (1, 'of bob')",
        &[],
    )
    .await;
    run(
        &alice,
        "INSERT INTO support.inbox (id, body) VALUES (1, 'one')",
        &[],
    )
    .await;
    run(
        &alice,
        "UPDATE support.inbox SET body = 'two' WHERE id = 1",
        &[],
    )
    .await;
    let seen = changes(&mut events, 2).await;
    assert_eq!(bodies(&seen), ["insert one", "update two"]);
    let cursor: i64 = seen[1].1["_seq"]
        .as_str()
        .expect("a _seq")
        .parse()
        .expect("a number");
    events.close().await.expect("closed");

    run(
        &alice,
        "INSERT INTO support.inbox (id, body) VALUES (2, 'meanwhile')",
        &[],
    )
    .await;
    run(&alice, "DELETE FROM support.inbox WHERE id = 1", &[]).await;
    let mut resumed = config("resumed");
    resumed.options = Some(SubscriptionOptions::new().with_from(SeqId::from(cursor)));
    let mut events = alice
        .live_events_with_config(resumed)
        .await
        .expect("events");
    let seen = changes(&mut events, 2).await;
    assert_eq!(bodies(&seen), ["insert meanwhile", "delete two"]);
    run(&bob, "DELETE FROM support.inbox", &[]).await;
    events.close().await.expect("closed");
    alice.disconnect().await;
    bob.disconnect().await;
}

/// The client connects again by itself and misses nothing of what was committed before and after.
async fn a_server_that_is_killed(url: &str) {
    let alice = client(url, "alice", ALICE, ProtocolOptions::default());
    run(&alice, "DELETE FROM support.inbox", &[]).await;
    run(
        &alice,
        "INSERT INTO support.inbox (id, body) VALUES (1, 'before')",
        &[],
    )
    .await;
    let mut live = alice
        .live("SELECT id, body FROM support.inbox")
        .await
        .expect("a live query");
    let mut expected = BTreeMap::from([("1".to_string(), "before".to_string())]);
    shows(&mut live, &expected).await;
    println!("kill");
    std::io::stdout().flush().expect("flushed");
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .expect("the server is back");
    run(
        &alice,
        "INSERT INTO support.inbox (id, body) VALUES (2, 'after')",
        &[],
    )
    .await;
    expected.insert("2".into(), "after".into());
    shows(&mut live, &expected).await;
    live.close().await.expect("closed");
    alice.disconnect().await;
}

async fn run(client: &KalamLinkClient, sql: &str, params: &[QueryParam]) -> QueryResponse {
    let params = (!params.is_empty()).then(|| params.to_vec());
    client
        .execute_query(sql, None, params, None)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn cells(answer: &QueryResponse) -> Vec<Vec<Value>> {
    let rows = answer
        .results
        .last()
        .and_then(|result| result.rows.clone())
        .unwrap_or_default();
    rows.iter()
        .map(|row| {
            row.iter()
                .map(|cell| serde_json::to_value(cell).expect("JSON"))
                .collect()
        })
        .collect()
}

/// Wait until the live rows are the expected ones, by id.
async fn shows(live: &mut LiveRowsSubscription, expected: &BTreeMap<String, String>) {
    loop {
        match tokio::time::timeout(WAIT, live.next())
            .await
            .expect("in time")
            .expect("open")
            .expect("no error")
        {
            LiveRowsEvent::Rows { rows, .. } => {
                let text = |row: &kalam_client::RowData, name: &str| {
                    row.get(name)
                        .and_then(|cell| cell.as_text())
                        .unwrap_or_default()
                        .to_string()
                };
                let now: BTreeMap<String, String> = rows
                    .iter()
                    .map(|row| (text(row, "id"), text(row, "body")))
                    .collect();
                if now == *expected {
                    return;
                }
            }
            LiveRowsEvent::Error { code, message, .. } => panic!("{code}: {message}"),
        }
    }
}

/// Return the next rows of events that insert, update or delete, the rows of the snapshot as inserts.
async fn changes(events: &mut SubscriptionManager, count: usize) -> Vec<(&'static str, Value)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let event = tokio::time::timeout(WAIT, events.next())
            .await
            .expect("in time")
            .expect("open")
            .expect("no error");
        let (kind, rows) = match event {
            ChangeEvent::InitialDataBatch { rows, .. } | ChangeEvent::Insert { rows, .. } => {
                ("insert", rows)
            }
            ChangeEvent::Update { rows, .. } => ("update", rows),
            ChangeEvent::Delete { old_rows, .. } => ("delete", old_rows),
            ChangeEvent::Error { code, message, .. } => panic!("{code}: {message}"),
            _ => continue,
        };
        seen.extend(
            rows.iter()
                .map(|row| (kind, serde_json::to_value(row).expect("JSON"))),
        );
    }
    seen
}

fn bodies(seen: &[(&'static str, Value)]) -> Vec<String> {
    seen.iter()
        .map(|(kind, row)| format!("{kind} {}", row["body"].as_str().expect("a body")))
        .collect()
}
