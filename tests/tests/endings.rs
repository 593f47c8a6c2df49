//! How calls end that a node cannot go on with: always with an error that says what was wrong and
//! what became of the call, whatever layer found it.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use lockstep_client::{Error, Outcome, reason};
use lockstep_proto::v1::upload_module_request::{Header, Part};
use lockstep_proto::v1::{self, execute_stream_reply};
use lockstep_tests::cluster::{Plan, SOON};
use lockstep_tests::kv;
use lockstep_tests::raw::Raw;
use prost::Message as _;
use tonic::{Code, Status};

const EXECUTE: &str = "/lockstep.v1.Client/Execute";
const EXECUTE_STREAM: &str = "/lockstep.v1.Client/ExecuteStream";
const QUERY: &str = "/lockstep.v1.Client/Query";
const UPLOAD: &str = "/lockstep.v1.Admin/UploadModule";

/// Longer than any message may be.
fn too_long() -> Bytes {
    vec![0; 5_000_000].into()
}

/// A field whose length says more than there is.
fn no_protobuf() -> Bytes {
    Bytes::from_static(&[0x0a, 0xff, 0x01])
}

fn command(id: u64) -> Bytes {
    let request = v1::ExecuteRequest {
        machine: kv::MACHINE.to_owned(),
        command: kv::text(&format!("SET k {id}")),
        session: None,
    };
    v1::ExecuteStreamRequest { id, request: Some(request), timeout_ms: 0 }.encode_to_vec().into()
}

/// The replies of a call, and the error that ended it.
async fn all(replies: Result<tonic::Streaming<Bytes>, Status>) -> (Vec<Bytes>, Option<Status>) {
    let mut replies = match replies {
        Ok(replies) => replies,
        Err(status) => return (Vec::new(), Some(status)),
    };
    let mut got = Vec::new();
    loop {
        match replies.message().await {
            Ok(Some(reply)) => got.push(reply),
            Ok(None) => return (got, None),
            Err(status) => return (got, Some(status)),
        }
    }
}

/// A message over the limit, or one that is no protobuf, among the commands of a stream: the
/// commands before it are answered, and then the stream ends with an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_a_bad_message_ends_with_an_error() {
    let cluster = Plan::new(1).start().await;
    let raw = Raw::at(&cluster.node(1).client_addr);
    let rows = [
        (too_long(), Code::ResourceExhausted, reason::TOO_LARGE),
        (no_protobuf(), Code::InvalidArgument, reason::BAD_REQUEST),
    ];
    for (bad, code, reason) in rows {
        let messages = stream::iter([command(1), command(2), bad, command(3)]);
        // The client does not end its side.
        let replies = raw.call(EXECUTE_STREAM, messages.chain(stream::pending()), None).await;
        let (replies, status) = all(replies).await;
        let mut ids: Vec<u64> = replies.into_iter().map(answered).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2], "{reason}");
        check(EXECUTE_STREAM, status, code, reason, Outcome::NotApplied);
    }
}

fn answered(reply: Bytes) -> u64 {
    let reply = v1::ExecuteStreamReply::decode(reply).expect("a reply is protobuf");
    assert!(matches!(reply.result, Some(execute_stream_reply::Result::Reply(_))), "{reply:?}");
    reply.id
}

fn check(path: &str, status: Option<Status>, code: Code, reason: &str, outcome: Outcome) {
    let status = status.unwrap_or_else(|| panic!("{path} ended well"));
    let error = Error::from_status(&status);
    let found = (error.code, error.reason.as_str(), error.outcome);
    assert_eq!(found, (code, reason, outcome), "{path}: {status:?}");
    assert!(!error.message.is_empty(), "{path}: {status:?}");
}

/// The same for whole calls: what cannot be read, methods that do not exist, calls without a
/// message, and deadlines that pass while a request is still coming in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_cannot_be_read_end_with_details() {
    let cluster = Plan::new(1).start().await;
    let raw = Raw::at(&cluster.node(1).client_addr);
    let (large, bad) = ((Code::ResourceExhausted, reason::TOO_LARGE), reason::BAD_REQUEST);
    let bad = (Code::InvalidArgument, bad);
    let unknown = (Code::Unimplemented, reason::UNIMPLEMENTED);
    let rows = [
        (EXECUTE, vec![too_long()], large),
        (EXECUTE, vec![no_protobuf()], bad),
        (EXECUTE, vec![], bad),
        (QUERY, vec![too_long()], large),
        (QUERY, vec![no_protobuf()], bad),
        (UPLOAD, vec![too_long()], large),
        (UPLOAD, vec![no_protobuf()], bad),
        (UPLOAD, vec![], bad),
        ("/lockstep.v1.Admin/Status", vec![no_protobuf()], bad),
        ("/lockstep.v1.Admin/FetchSnapshot", vec![no_protobuf()], bad),
        ("/lockstep.v1.Client/NoSuch", vec![Bytes::new()], unknown),
        ("/lockstep.v2.Client/Execute", vec![Bytes::new()], unknown),
    ];
    for (path, messages, (code, reason)) in rows {
        let (_, status) = all(raw.call(path, stream::iter(messages), None).await).await;
        check(path, status, code, reason, Outcome::NotApplied);
    }
    let header = Header { digest: vec![7; 32].into(), length: 9 };
    let begun = v1::UploadModuleRequest { part: Some(Part::Header(header)) };
    let (machine, command) = (kv::MACHINE.into(), kv::text("SET k v"));
    let whole = v1::ExecuteRequest { machine, command, session: None };
    // A request that has not ended reaches no service, so nothing is applied.
    let waits: [(&str, Vec<Bytes>); 4] = [
        (UPLOAD, vec![begun.encode_to_vec().into()]),
        (EXECUTE, vec![]),
        (EXECUTE, vec![whole.encode_to_vec().into()]),
        (QUERY, vec![]),
    ];
    for (path, messages) in waits {
        let messages = stream::iter(messages).chain(stream::pending());
        let timeout = Some(Duration::from_millis(300));
        let replies = raw_with_patience(&raw, path, messages, timeout).await;
        let (_, status) = all(replies).await;
        let (code, reason) = (Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED);
        check(path, status, code, reason, Outcome::NotApplied);
    }
}

async fn raw_with_patience(
    raw: &Raw,
    path: &'static str,
    messages: impl Stream<Item = Bytes> + Send + 'static,
    timeout: Option<Duration>,
) -> Result<tonic::Streaming<Bytes>, Status> {
    tokio::time::timeout(SOON, raw.call(path, messages, timeout)).await.expect("it ends")
}

/// A node that stops ends its streams with an error that says so, and that what it did not answer
/// was not applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_streams_with_an_error() {
    let mut cluster = Plan::new(1).start().await;
    let raw = Raw::at(&cluster.node(1).client_addr);
    let messages = stream::iter([command(1)]).chain(stream::pending());
    let mut replies = raw.call(EXECUTE_STREAM, messages, None).await.expect("it is opened");
    answered(replies.message().await.expect("it is answered").expect("it has not ended"));
    cluster.node_mut(1).stop().await;
    let (_, status) = all(Ok(replies)).await;
    let outcome = Outcome::NotApplied;
    check(EXECUTE_STREAM, status, Code::Unavailable, reason::SHUTTING_DOWN, outcome);
}
