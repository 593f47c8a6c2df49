//! Commands and their replies: what the guest answers is what the client gets.

use futures::future::join_all;
use lockstep_client::{Consistency, reason};
use lockstep_tests::cluster::Plan;
use lockstep_tests::{kv, load, program};

/// Applying a command to the state machine returns the guest's own value: for each kind of
/// reply, as `redis-cli` would print it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applying_returns_the_guests_values() {
    let cluster = Plan::new(1).start().await;
    let rows = [
        ("SET k v", "OK"),
        ("GET k", "\"v\""),
        ("SET k w GET", "\"v\""),
        ("SET k x NX", "(nil)"),
        ("GET none", "(nil)"),
        ("EXISTS k none k", "(integer) 2"),
        ("DEL k none", "(integer) 1"),
        ("EXISTS k", "(integer) 0"),
        ("PING", "PONG"),
        ("PING hello", "\"hello\""),
        ("set K v", "OK"),
        ("get K", "\"v\""),
    ];
    for (line, printed) in rows {
        assert_eq!(cluster.kv(line).await.ok(), printed, "{line}");
    }
}

/// A command that the guest refuses is answered by the guest's own error, changes nothing, and
/// stops nothing: wrong number of arguments, unknown command, bad option.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guests_errors_are_the_guests() {
    let cluster = Plan::new(1).start().await;
    let client = cluster.client();
    load::write(&client, "k", "v").await;
    let rows = [
        ("SET k", "-ERR wrong number of arguments for 'set' command\r\n"),
        ("NOSUCH k", "-ERR unknown command 'NOSUCH', with args beginning with: 'k' \r\n"),
        ("SET k w SIDEWAYS", "-ERR syntax error\r\n"),
    ];
    for (line, expected) in rows {
        let executed = client.execute(kv::MACHINE, kv::text(line)).await.expect(line);
        assert_eq!(executed.reply, expected, "{line}");
        assert!(executed.rejected, "{line} counts as rejected");
    }
    let value = load::read(&client, "k", Consistency::Linearizable).await;
    assert_eq!(value.as_deref(), Some("v"));
}

/// Bytes inside a command that are no RESP are answered by the guest with a protocol error, and
/// the next command works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_resp_is_answered_with_an_error() {
    let cluster = Plan::new(1).start().await;
    let client = cluster.client();
    let rows: [&'static [u8]; 7] = [
        b"hello",
        b"*1\r\n",
        b"*1\r\n$3\r\nGE",
        b"*-1\r\n",
        b"*99999999999\r\n",
        b"*2\r\n$3\r\nGET\r\n$-5\r\n",
        b"\xff\xfe\x00",
    ];
    for bytes in rows {
        let executed = client.execute(kv::MACHINE, bytes).await.expect("the guest answers");
        assert!(executed.reply.starts_with(b"-ERR"), "{bytes:?}: {:?}", executed.reply);
        assert!(executed.rejected, "{bytes:?} counts as rejected");
    }
    load::write(&client, "k", "v").await;
}

/// Each of many commands that are under way together gets the reply to that very command: never
/// a constant, never another's. On one stream, on unary calls, and both at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_belong_to_their_commands() {
    let cluster = Plan::new(3).start().await;
    let client = cluster.client();
    let stream = client.stream();
    let calls = (0..2_000).map(|number| {
        let (client, stream) = (client.clone(), stream.clone());
        async move {
            let command = kv::text(&format!("PING call-{number}"));
            let executed = match number % 2 {
                0 => stream.execute(kv::MACHINE, command).await,
                _ => client.execute(kv::MACHINE, command).await,
            };
            let executed = executed.expect("a PING is answered");
            assert_eq!(executed.reply, kv::bulk(&format!("call-{number}")));
        }
    });
    join_all(calls).await;
}

/// Commands of one stream enter the log in the order in which they were sent: the last of many
/// writes of one key, all in flight together, is the one that stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_keeps_its_order() {
    let cluster = Plan::new(1).start().await;
    let stream = cluster.client().stream();
    let writes = (0..1_000).map(|number| {
        let stream = stream.clone();
        async move {
            let executed = stream.execute(kv::MACHINE, kv::text(&format!("SET k {number} GET")));
            (number, kv::value(&executed.await.expect("a SET is answered").reply))
        }
    });
    for (number, previous) in join_all(writes).await {
        let expected: Option<i32> = (number > 0).then(|| number - 1);
        assert_eq!(previous, expected.map(|number| number.to_string()), "before {number}");
    }
}

/// An empty command, and a command for a machine that doesn't exist, are refused with the
/// reason, were not applied, and nothing is logged for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_cannot_be_are_refused() {
    let cluster = Plan::new(1).start().await;
    let client = cluster.client();
    let before = cluster.node(1).status().await.expect("it answers").last_log_index;
    let rows = [
        ("kv", "", reason::BAD_REQUEST),
        ("nosuch", "x", reason::NO_SUCH_MACHINE),
        ("", "x", reason::BAD_REQUEST),
    ];
    for (machine, command, expected) in rows {
        let command = command.as_bytes();
        let error = client.execute(machine, command).await.expect_err("it is refused");
        assert_eq!(error.reason, expected, "execute at {machine:?}: {error}");
        assert_eq!(error.outcome, lockstep_client::Outcome::NotApplied, "{error}");
        let error = client.query(machine, command, Consistency::Linearizable).await;
        let error = error.expect_err("it is refused");
        assert_eq!(error.reason, expected, "query at {machine:?}: {error}");
    }
    let ran = cluster.run(&["exec", "--machine", "nosuch", "x"]).await;
    ran.refused(&["nosuch"]);
    let after = cluster.node(1).status().await.expect("it answers").last_log_index;
    assert_eq!(after, before, "nothing was logged");
}

/// `exec` and `query` take text, hexadecimal, a file or standard input, and print text,
/// hexadecimal or raw bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_and_query_take_and_print_every_form() {
    let cluster = Plan::new(1).start().await;
    let endpoint = cluster.endpoints();
    let set = kv::command(&[b"SET", b"bytes", &[0, 255]]);
    let get = kv::text("GET bytes");
    let file = cluster.directory().join("command");
    std::fs::write(&file, &set).expect("a file can be written");
    let at = ["--machine", "kv", "--endpoint", &endpoint];

    let file = file.display().to_string();
    let ran = program::run(["exec"].iter().chain(&at).chain(&["--file", &file])).await;
    assert_eq!(ran.ok().trim_end(), "+OK");

    let get_hex = hex::encode(&get);
    let ran = program::run(["query"].iter().chain(&at).chain(&["--hex", &get_hex])).await;
    assert_eq!(ran.ok(), hex::encode(b"$2\r\n\x00\xff\r\n"));

    let ran = program::run_with_input(["exec"].iter().chain(&at).chain(&["--raw"]), &set).await;
    assert_eq!(ran.out, "+OK\r\n");
}
