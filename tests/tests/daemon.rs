//! The daemon as a process: starting, stopping, what it refuses to start with, what it serves.

use std::time::Duration;

use lockstep_proto::v1::status_reply::Role;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::wait::until;
use lockstep_tests::{load, ports, program};
use rustix::process::Signal;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

/// SIGTERM and SIGINT end a node gracefully within 5 s, with exit code 0, the log synced and
/// leadership handed over: another node leads although no election timeout has passed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_stops_a_node_gracefully() {
    for signal in [Signal::TERM, Signal::INT] {
        let patient = "election_timeout_ms = 60000";
        let mut cluster = Plan::new(3).config(patient).start().await;
        let leader = cluster.leader().await;
        load::write(&cluster.client(), "k", "v").await;
        cluster.node_mut(leader).stop_by(signal, Duration::from_secs(5)).await;
        cluster.leader_other_than(leader).await;
        load::write(&cluster.client(), "k", "w").await;
    }
}

/// A lone node, and one in no cluster, stop as gracefully, and a lone one leads again after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_node_stops_and_starts() {
    let mut cluster = Plan::new(1).start_bare().await;
    let limit = Duration::from_secs(5);
    cluster.node_mut(1).stop_by(Signal::TERM, limit).await;
    cluster.node_mut(1).start().await;
    cluster.run(&["cluster", "init"]).await.ok();
    cluster.leader().await;
    cluster.node_mut(1).stop_by(Signal::INT, limit).await;
    cluster.node_mut(1).start().await;
    cluster.leader().await;
}

/// A data folder that is in use is refused, and the node that uses it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_in_use_is_refused() {
    let mut cluster = Plan::new(1).start().await;
    let folder = cluster.node(1).data_dir.clone();
    let second = cluster.prepare_another().await;
    cluster.node_mut(second).data_dir.clone_from(&folder);
    let shown = folder.display().to_string();
    cluster.node_mut(second).refuses_to_start(&["in use", &shown]).await;
    load::write(&cluster.node(1).client(), "k", "v").await;
}

/// A port in use is refused, naming the address, before the data folder is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_refused() {
    let mut cluster = Plan::new(1).start().await;
    let taken = [cluster.node(1).client_addr.clone(), cluster.node(1).peer_addr.clone()];
    for address in taken {
        let id = cluster.prepare_another().await;
        cluster.node_mut(id).client_addr.clone_from(&address);
        cluster.node_mut(id).refuses_to_start(&[&address, "in use"]).await;
        let id = cluster.prepare_another().await;
        cluster.node_mut(id).peer_addr.clone_from(&address);
        cluster.node_mut(id).refuses_to_start(&[&address, "in use"]).await;
        assert!(!cluster.node(id).data_dir.exists(), "it has written nothing");
    }
}

/// Unknown flags and commands end with exit code 2 and name what is not known.
#[tokio::test]
async fn unknown_flags_are_refused() {
    let rows: [(&[&str], &str); 5] = [
        (&["serve", "--no-such-flag"], "--no-such-flag"),
        (&["status", "--jsno"], "--jsno"),
        (&["cluster", "join"], "join"),
        (&["no-such-command"], "no-such-command"),
        (&["serve", "--node-id", "one"], "one"),
    ];
    for (call, unknown) in rows {
        program::run(call).await.failed(2, &[unknown]);
    }
}

/// A config file that is not there, holds an unknown key or an impossible value is refused, and
/// the file and what is wrong in it are named; no data folder is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_config_file_is_refused() {
    let mut cluster = Plan::new(0).start_bare().await;
    let id = cluster.prepare_another().await;
    let rows: [(&str, &str); 5] = [
        ("no_such_key = 1", "no_such_key"),
        ("heartbeat_interval_ms = \"soon\"", "heartbeat_interval_ms"),
        ("heartbeat_interval_ms = 0", "heartbeat_interval_ms"),
        ("this is no TOML", "toml"),
        ("peer_reach = { three = \"127.0.0.1:1\" }", "three"),
    ];
    for (toml, part) in rows {
        cluster.node(id).configure(toml);
        cluster.node_mut(id).refuses_to_start(&[part]).await;
        assert!(!cluster.node(id).data_dir.exists(), "{toml}: it has written nothing");
    }
    let absent = cluster.directory().join("absent.toml").display().to_string();
    cluster.node(id).configure("");
    cluster.node_mut(id).flags = vec!["--config".to_owned(), absent];
    let data = cluster.node(id).data_dir.display().to_string();
    let (client, peer) = (ports::address(), ports::address());
    let mut call = vec!["serve", "--node-id", "1", "--data-dir", &data, "--client-addr", &client];
    let absent = cluster.node(id).flags.clone();
    call.extend(["--peer-addr", &peer, &absent[0], &absent[1]]);
    program::run(call).await.refused(&["absent.toml"]);
}

/// Listening on anything but loopback is refused unless `--insecure` is given, which warns at each
/// start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_than_loopback_needs_insecure() {
    let mut cluster = Plan::new(0).start_bare().await;
    let id = cluster.prepare_another().await;
    let everywhere = format!("0.0.0.0:{}", ports::free());
    let local = cluster.node(id).client_addr.clone();
    cluster.node_mut(id).client_addr.clone_from(&everywhere);
    cluster.node_mut(id).refuses_to_start(&[&everywhere, "--insecure"]).await;
    cluster.node_mut(id).client_addr = local;
    cluster.node_mut(id).peer_addr.clone_from(&everywhere);
    cluster.node_mut(id).refuses_to_start(&[&everywhere, "--insecure"]).await;

    cluster.node_mut(id).flags.push("--insecure".to_owned());
    for _ in 0..2 {
        let before = cluster.node(id).log_text().len();
        cluster.node_mut(id).start().await;
        let said = cluster.node(id).log_text().split_off(before);
        program::assert_holds("its log", &said, &["WARN", "insecure"]);
        cluster.node_mut(id).kill().await;
    }
}

/// Logs are text, or JSON on request, one object a line; their level can be set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_structured_on_request() {
    let json = Plan::new(1).flag("--log-format").flag("json");
    let cluster = json.flag("--log-level").flag("debug").start_bare().await;
    let text = cluster.node(1).log_text();
    assert!(!text.is_empty(), "it says that it starts");
    for line in text.lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"));
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
    }
}

/// The health service says NOT_SERVING until there is a leader and SERVING then; reflection
/// lists the public services.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_reflection_are_on() {
    let cluster = Plan::new(1).start_bare().await;
    let address = format!("http://{}", cluster.node(1).client_addr);
    let endpoint = tonic::transport::Endpoint::from_shared(address).expect("it is an address");
    let channel = endpoint.connect().await.expect("it answers");
    let mut health = HealthClient::new(channel.clone());
    let mut ask = async || {
        let request = HealthCheckRequest { service: String::new() };
        let reply = health.check(request).await.map_err(|status| status.to_string())?;
        Ok::<_, String>(reply.into_inner().status())
    };
    assert_eq!(ask().await.expect("it answers"), ServingStatus::NotServing);
    cluster.run(&["cluster", "init"]).await.ok();
    until("the node to be healthy", SOON, async || match ask().await? {
        ServingStatus::Serving => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;

    let mut reflection = ServerReflectionClient::new(channel);
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = reflection.server_reflection_info(futures::stream::iter([list])).await;
    let reply = asked.expect("it reflects").into_inner().message().await.expect("it answers");
    let listed = format!("{reply:?}");
    program::assert_holds("reflection", &listed, &["lockstep.v1.Client", "lockstep.v1.Admin"]);
}

/// A follower that is stopped leaves its leader alone, and status of it says what each node is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_follower_changes_nothing() {
    let mut cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let term = cluster.node(leader).status().await.expect("it answers").term;
    cluster.node_mut(leader % 3 + 1).stop().await;
    load::write(&cluster.client(), "k", "v").await;
    let status = cluster.node(leader).status().await.expect("it answers");
    assert_eq!((status.role(), status.term), (Role::Leader, term));
}
