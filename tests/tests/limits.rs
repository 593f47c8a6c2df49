//! Limits: what is over one is refused by a clear error, was not applied, and stops nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use lockstep_client::{Client, Consistency, Error, Outcome, reason};
use lockstep_proto::v1::ExecuteRequest;
use lockstep_proto::v1::client_client::ClientClient;
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::wait::until;
use lockstep_tests::{files, kv, load};

/// Longest command, in bytes (docs/operations.md).
const COMMAND_BYTES_MAX: usize = 1 << 20;

/// A SET whose command is exactly so long.
fn set_of_length(key: &str, length: usize) -> Bytes {
    let value_for = |short: usize| vec![b'x'; length - short];
    // Two rounds, since the length of the value stands in the command, too.
    let first = kv::command(&[b"SET", key.as_bytes(), &value_for(100)]);
    let command = kv::command(&[b"SET", key.as_bytes(), &value_for(100 + first.len() - length)]);
    assert_eq!(command.len(), length, "numbers of equal length stand in both");
    command
}

/// A command of the longest length works, and one byte more is refused: by a unary call, on a
/// stream and as a query.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_over_the_limit_is_refused() {
    let cluster = Plan::new(1).start().await;
    let client = cluster.client();
    let (stream, longest) = (client.stream(), set_of_length("k", COMMAND_BYTES_MAX));
    for _ in 0..2 {
        assert_eq!(client.execute("kv", longest.clone()).await.expect("it fits").reply, "+OK\r\n");
        assert_eq!(stream.execute("kv", longest.clone()).await.expect("it fits").reply, "+OK\r\n");
    }
    let over = set_of_length("k", COMMAND_BYTES_MAX + 1);
    let errors = [
        client.execute("kv", over.clone()).await.expect_err("it is over the limit"),
        stream.execute("kv", over.clone()).await.expect_err("it is over the limit"),
        client.query("kv", over, Consistency::Linearizable).await.expect_err("it is over"),
    ];
    for error in errors {
        assert_eq!(
            (error.outcome, error.reason.as_str()),
            (Outcome::NotApplied, reason::TOO_LARGE)
        );
        assert!(error.message.contains("1048576"), "it names the limit: {error}");
    }
    let answered = client.query("kv", kv::text("GET k"), Consistency::Linearizable).await;
    let value = kv::value(&answered.expect("it goes on").reply).expect("it is there");
    assert!(value.len() > COMMAND_BYTES_MAX - 100);
}

/// No message limit stalls replication: many of the longest commands at once reach every node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_commands_replicate() {
    let cluster = Plan::new(3).start().await;
    let client = cluster.client().with_timeout(SOON);
    let writes = (0..48).map(|number| {
        let command = set_of_length(&format!("key-{number:02}"), COMMAND_BYTES_MAX);
        client.execute("kv", command)
    });
    for executed in join_all(writes).await {
        assert_eq!(executed.expect("it is acknowledged").reply, "+OK\r\n");
    }
    cluster.level(&[1, 2, 3], SOON).await;
}

/// A full proposer queue answers OVERLOADED, NOT_APPLIED: what was refused never shows, what was
/// acknowledged is there, and the node goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_overloaded() {
    let config = "proposer_queue_commands_max = 4\nentries_in_flight_max = 1";
    let cluster = Plan::new(1).config(config).start().await;
    let address = format!("http://{}", cluster.node(1).client_addr);
    let service = ClientClient::connect(address).await.expect("it answers");
    let calls = (0..2_000).map(|number| {
        let mut service = service.clone();
        async move {
            let command = kv::text(&format!("SET key-{number} v"));
            let request = ExecuteRequest { machine: "kv".to_owned(), command, session: None };
            (number, service.execute(request).await.map_err(|status| Error::from_status(&status)))
        }
    });
    let (mut accepted, mut refused) = (0, 0);
    let client = cluster.client();
    for (number, result) in join_all(calls).await {
        let expected = match result {
            Ok(reply) => {
                assert_eq!(reply.into_inner().reply, "+OK\r\n");
                accepted += 1;
                Some("v".to_owned())
            }
            Err(error) => {
                assert_eq!(error.reason, reason::OVERLOADED, "{error}");
                assert_eq!(error.outcome, Outcome::NotApplied, "{error}");
                refused += 1;
                None
            }
        };
        let key = format!("key-{number}");
        assert_eq!(load::read(&client, &key, Consistency::Linearizable).await, expected, "{key}");
    }
    assert!(accepted > 0 && refused > 0, "{accepted} accepted, {refused} refused");
}

/// When the disk is nearly full, writes are refused before they are appended and reads go on; when
/// there is room again, writes resume by themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nearly_full_disk_refuses_writes() {
    let mut cluster = Plan::new(1).start().await;
    load::write(&cluster.client(), "k", "before").await;
    cluster.node_mut(1).stop().await;
    // A reserve just below what is free, and a file that takes more than the difference: other
    // programs use the disk, too, so the difference is large.
    let free = free_bytes(&cluster.node(1).data_dir);
    let margin = (free / 4).min(4 << 30);
    cluster.reconfigure(&format!("disk_reserve_bytes = {}", free - margin));
    cluster.node_mut(1).start().await;
    cluster.leader().await;
    let client = cluster.client().with_timeout(Duration::from_secs(2));
    load::write(&client, "k", "roomy").await;

    let hog = cluster.directory().join("hog");
    allocate(&hog, 2 * margin);
    let logged = until("writes to be refused", SOON, async || {
        let before = cluster.node(1).status().await?.last_log_index;
        match client.execute("kv", kv::text("SET other v")).await {
            Err(error) if error.reason == reason::DISK_FULL => {
                assert_eq!(error.outcome, Outcome::NotApplied, "{error}");
                Ok(before)
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    load::write_is_refused(&client, reason::DISK_FULL).await;
    let read = load::read(&client, "k", Consistency::Linearizable).await;
    assert_eq!(read.as_deref(), Some("roomy"), "reads go on");
    let status = cluster.node(1).status().await.expect("it answers");
    assert_eq!(status.last_log_index, logged, "what was refused was not appended");
    assert!(!status.alarms.is_empty(), "status says why");

    std::fs::remove_file(&hog).expect("the file can be removed");
    until("writes to resume", SOON, async || {
        let write = client.execute("kv", kv::text("SET k after")).await;
        write.map(|_| ()).map_err(|error| error.to_string())
    })
    .await;
}

fn free_bytes(folder: &std::path::Path) -> u64 {
    let disk = rustix::fs::statvfs(folder).expect("the disk can be asked");
    disk.f_bavail * disk.f_frsize
}

fn allocate(file: &std::path::Path, bytes: u64) {
    let opened = std::fs::File::create(file).expect("the file can be made");
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&opened, flags, 0, bytes).expect("the disk reserves room");
}

/// A disk that takes nothing at the start is refused, naming the file that could not be written;
/// what it left behind does not keep the node from starting once there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_at_the_start_is_refused() {
    let mut cluster = Plan::new(1).start_bare().await;
    cluster.node_mut(1).stop().await;
    let node = cluster.node_mut(1);
    std::fs::remove_dir_all(&node.data_dir).expect("the folder can be removed");
    let before = node.log_text().len();
    // No file of the process may grow: to it, that is what a full disk is.
    node.spawn_under("set -o pipefail; (trap '' XFSZ; ulimit -f 0; exec \"$@\") 2>&1 | cat");
    let folder = node.data_dir.display().to_string();
    node.ends_refusing(before, &[&folder]).await;
    node.start().await;
    assert!(!files::snapshot(&node.data_dir).is_empty());
}

/// A deadline is honoured: a command that cannot commit ends when the client's time is over, with
/// an unknown outcome, and the connection serves on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_honoured() {
    let cluster = Plan::new(3).start().await;
    let leader = cluster.leader().await;
    let client: Arc<Client> = Arc::new(cluster.node(leader).client());
    load::write(&client, "k", "before").await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        cluster.node(*id).pause().await;
    }
    let hasty = client.with_timeout(Duration::from_millis(700));
    let started = std::time::Instant::now();
    let error = hasty.execute("kv", kv::text("SET k after")).await.expect_err("nobody agrees");
    assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
    assert_eq!(error.outcome, Outcome::Unknown, "{error}");
    others.iter().for_each(|id| cluster.node(*id).resume());
    cluster.leader().await;
    load::write(&client, "other", "v").await;
}
