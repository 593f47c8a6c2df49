//! Disk and wire: one value has the same bytes on both.

use std::sync::mpsc;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::raft::AppendEntriesRequest;

use super::{encode_append, encode_vote};
use crate::codec::{put_log_id, put_vote};
use crate::config::FileConfig;
use crate::raft::store::convert::{
    body_from_raft, log_id_from_raft, log_id_to_raft, membership_to_raft, vote_to_raft,
};
use crate::raft::type_config::{Entry, EntryBytes};
use crate::storage::{FlushDone, Log, LogConfig, LogPlace, Payload};
use crate::types::{Incarnation, LogId, Member, Membership, NodeId, Vote};

const VOTE: Vote = Vote { term: 0x0102_0304_0506, node: NodeId(0x1718_191a), committed: true };

fn log_id(index: u64) -> LogId {
    LogId { term: 0x0102_0304_0506, node: NodeId(0x1718_191a), index }
}

fn entries() -> Vec<Entry> {
    let member = Member {
        peer_addr: "127.0.0.1:7400".to_owned(),
        client_addr: "node-one.example:7401".to_owned(),
        incarnation: [0x2a; 16],
    };
    let membership = Membership {
        voters: vec![[NodeId(1)].into(), [NodeId(1), NodeId(300)].into()],
        members: [(NodeId(1), member.clone()), (NodeId(300), member)].into(),
    };
    let payloads = [
        EntryPayload::Blank,
        EntryPayload::Normal(EntryBytes(Bytes::from_static(b"LS, a proposal in its envelope"))),
        EntryPayload::Membership(membership_to_raft(membership).unwrap()),
    ];
    let ids = (0x2122_2324..).map(|index| log_id_to_raft(log_id(index)));
    ids.zip(payloads).map(|(log_id, payload)| Entry { log_id, payload }).collect()
}

/// The bytes of the log's file after a vote, some entries and how far they are committed.
fn on_disk() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let place = LogPlace {
        folder: folder.path().join("log"),
        ledger: folder.path().join("log-ledger"),
        owner: Incarnation([7; 16]),
    };
    let log = Log::open(&place, &LogConfig::from(&FileConfig::default())).unwrap();
    let (sender, synced) = mpsc::channel();
    let done = || -> FlushDone {
        let sender = sender.clone();
        Box::new(move |result| sender.send(result).unwrap())
    };
    log.save_vote(VOTE, done()).unwrap();
    let payloads = entries().into_iter().map(|entry| {
        let (kind, bytes) = body_from_raft(entry.payload).encode();
        (log_id_from_raft(&entry.log_id), Payload { kind, bytes })
    });
    log.append(payloads, done()).unwrap();
    for _ in 0..2 {
        synced.recv().unwrap().unwrap();
    }
    let file = std::fs::read_dir(&place.folder).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.ends_with("00000000000000000001.wal").then_some(path)
    });
    std::fs::read(file.unwrap()).unwrap()
}

fn place_of(part: &[u8], whole: &[u8]) -> Option<usize> {
    whole.windows(part.len()).position(|window| window == part)
}

/// A vote, a log id and an entry that a leader sends are, byte for byte, what its log holds.
#[test]
fn disk_and_wire_hold_the_same_bytes() {
    let disk = on_disk();
    let mut vote = Vec::new();
    put_vote(&mut vote, VOTE);
    let message = encode_append(AppendEntriesRequest {
        vote: vote_to_raft(VOTE),
        prev_log_id: Some(log_id_to_raft(log_id(0x2122_2323))),
        entries: entries(),
        leader_commit: Some(log_id_to_raft(log_id(0x2122_2324))),
    });
    let message = message.unwrap();
    assert!(place_of(&vote, &disk).is_some(), "the vote on disk");
    assert_eq!(place_of(&vote, &encode_vote(&vote_to_raft(VOTE))), Some(1), "a vote by itself");
    assert_eq!(place_of(&vote, &message.head), Some(1), "the vote of a request to append");
    let mut first = Vec::new();
    put_log_id(&mut first, log_id(0x2122_2324));
    assert!(place_of(&first, &disk).is_some(), "the first log id on disk");
    assert!(place_of(&first, &message.head).is_some(), "the commit index of the request");

    let kinds = &message.head[message.head.len() - 4 - message.entries.len()..];
    for ((entry, sent), kind) in entries().iter().zip(&message.entries).zip(kinds) {
        // On disk the entry's bytes stand behind its log id, and its kind in the header before it.
        let mut record = Vec::new();
        put_log_id(&mut record, log_id_from_raft(&entry.log_id));
        record.extend_from_slice(sent);
        let body = place_of(&record, &disk).expect("the record of the entry");
        assert_eq!(disk[body - 30], *kind, "the kind of {entry:?}");
    }
}
