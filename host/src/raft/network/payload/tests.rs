//! What is encoded decodes to the same; what is not encoded by us does not decode, and nothing
//! makes the decoder panic.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut as _, Bytes};
use lockstep_proto::peer;
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, TransferLeaderError, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::codec::{POSITION_MAX, put_log_id, put_option};
use crate::raft::store::convert::{log_id_to_raft, membership_to_raft, vote_to_raft};
use crate::raft::type_config::{
    Entry, EntryBytes, RaftSnapshotMeta, RaftStoredMembership, TypeConfig,
};
use crate::storage::snapshot::SnapshotId;
use crate::types::{LogId, Member, Membership, NodeId, Vote};

fn position() -> impl Strategy<Value = u64> {
    prop_oneof![0..100u64, 0..POSITION_MAX]
}

fn any_log_id() -> impl Strategy<Value = LogId> {
    (position(), any::<u64>(), position()).prop_map(|(term, node, index)| LogId {
        term,
        node: NodeId(node),
        index,
    })
}

fn any_vote() -> impl Strategy<Value = Vote> {
    (position(), any::<u64>(), any::<bool>()).prop_map(|(term, node, committed)| Vote {
        term,
        node: NodeId(node),
        committed,
    })
}

fn any_membership() -> impl Strategy<Value = Membership> {
    (vec(1..50u64, 1..5), vec(".{0,20}", 5)).prop_map(|(nodes, names)| {
        let voters: BTreeSet<NodeId> = nodes.iter().copied().map(NodeId).collect();
        let member = |(index, id): (usize, &NodeId)| {
            let name = names[index].clone();
            let member = Member {
                peer_addr: name.clone(),
                client_addr: name,
                incarnation: [u8::try_from(index).unwrap(); 16],
            };
            (*id, member)
        };
        let members: BTreeMap<_, _> = voters.iter().enumerate().map(member).collect();
        Membership { voters: vec![voters], members }
    })
}

fn any_payload() -> impl Strategy<Value = EntryPayload<EntryBytes, NodeId, Member>> {
    prop_oneof![
        Just(EntryPayload::Blank),
        vec(any::<u8>(), 0..200).prop_map(|bytes| EntryPayload::Normal(EntryBytes(bytes.into()))),
        any_membership().prop_map(|membership| {
            EntryPayload::Membership(membership_to_raft(membership).unwrap())
        }),
    ]
}

prop_compose! {
    /// A request that a leader could send: consecutive entries, terms that never fall.
    fn any_append()(
        previous in option::of((0..5u64, 1..4u64, 0..1000u64)),
        steps in vec((0..2u64, 1..4u64, any_payload()), 0..12),
        commit in option::of(any_log_id()),
        later_terms in 0..3u64,
    ) -> AppendEntriesRequest<TypeConfig> {
        let log_id = |(term, node, index)| LogId { term, node: NodeId(node), index };
        let previous = previous.map(log_id);
        let mut term = previous.map_or(0, |id| id.term);
        let first = previous.map_or(0, |id| id.index + 1);
        let entries: Vec<Entry> = (first..).zip(steps).map(|(index, (step, node, payload))| {
            term += step;
            let id = LogId { term, node: NodeId(node), index };
            Entry { log_id: log_id_to_raft(id), payload }
        }).collect();
        let vote = Vote { term: term + later_terms, node: NodeId(1), committed: true };
        AppendEntriesRequest {
            vote: vote_to_raft(vote),
            prev_log_id: previous.map(log_id_to_raft),
            entries,
            leader_commit: commit.map(log_id_to_raft),
        }
    }
}

proptest! {
    #[test]
    fn requests_to_append_survive_the_wire(request in any_append()) {
        let message = encode_append(request.clone()).unwrap();
        let decoded = decode_append(message).unwrap();
        prop_assert_eq!(decoded.vote, request.vote);
        prop_assert_eq!(decoded.prev_log_id, request.prev_log_id);
        prop_assert_eq!(decoded.leader_commit, request.leader_commit);
        prop_assert!(decoded.entries == request.entries);
    }

    /// One changed bit anywhere, entries included, is noticed.
    #[test]
    fn a_changed_bit_is_noticed(request in any_append(), at in any::<prop::sample::Index>()) {
        let mut message = encode_append(request).unwrap();
        let lengths = message.entries.iter().map(Bytes::len).sum::<usize>() + message.head.len();
        let bit = at.index(lengths * 8);
        let (mut byte, mask) = (bit / 8, 1 << (bit % 8));
        for part in std::iter::once(&mut message.head).chain(&mut message.entries) {
            if byte < part.len() {
                let mut changed = part.to_vec();
                changed[byte] ^= mask;
                *part = changed.into();
                break;
            }
            byte -= part.len();
        }
        prop_assert!(decode_append(message).is_err());
    }

    #[test]
    fn answers_survive_the_wire(
        id in any_log_id(),
        other in option::of(any_log_id()),
        vote in any_vote(),
    ) {
        let (id, other, vote) = (log_id_to_raft(id), other.map(log_id_to_raft), vote_to_raft(vote));
        let conflict = Err(StreamAppendError::Conflict(id));
        for result in [Ok(other), conflict, Err(StreamAppendError::HigherVote(vote))] {
            prop_assert_eq!(decode_append_result(&encode_append_result(&result)).unwrap(), result);
        }
        for result in [
            Ok(()),
            Err(TransferLeaderError::VoteChanged { expected: vote, actual: vote }),
            Err(TransferLeaderError::LogNotFlushed { expected: Some(id), actual: other }),
        ] {
            let decoded = decode_transfer_result(&encode_transfer_result(&result));
            prop_assert_eq!(decoded.unwrap(), result);
        }
        let result = VoteResponse::new(vote, other, true);
        prop_assert_eq!(decode_vote_result(&encode_vote_result(&result)).unwrap(), result);
        prop_assert_eq!(decode_vote(&encode_vote(&vote)).unwrap(), vote);
    }

    #[test]
    fn requests_survive_the_wire(
        last in option::of(any_log_id()),
        mut vote in any_vote(),
        transfer in any::<bool>(),
        to in any::<u64>(),
    ) {
        let last = last.map(log_id_to_raft);
        vote.committed = false;
        let mut request = VoteRequest::new(vote_to_raft(vote), last);
        request.leadership_transfer = transfer;
        prop_assert_eq!(decode_vote_request(&encode_vote_request(&request)).unwrap(), request);
        vote.committed = true;
        let request = TransferLeaderRequest::new(vote_to_raft(vote), NodeId(to), last);
        prop_assert_eq!(decode_transfer(&encode_transfer(&request)).unwrap(), request);
    }

    #[test]
    fn heads_of_snapshots_survive_the_wire(
        last in any_log_id(),
        membership in any_membership(),
        file_crc32c in any::<u32>(),
        length in any::<u64>(),
    ) {
        let vote = Vote { term: last.term, node: NodeId(1), committed: true };
        let last_log_id = Some(log_id_to_raft(last));
        let membership = membership_to_raft(membership).unwrap();
        let head = SnapshotHead {
            vote: vote_to_raft(vote),
            id: SnapshotId { last: Some(last), file_crc32c, length },
            meta: RaftSnapshotMeta {
                last_log_id,
                last_membership: RaftStoredMembership::new(last_log_id, membership),
            },
        };
        prop_assert_eq!(decode_snapshot_head(&encode_snapshot_head(&head)).unwrap(), head.clone());
        prop_assert_eq!(decode_snapshot_id(&encode_snapshot_id(&head.id)).unwrap(), head.id);
    }

    /// Bytes with a true checksum get past the first check, so the decoders behind it see them.
    #[test]
    fn garbage_never_panics(
        body in vec(prop_oneof![0..3u8, any::<u8>()], 0..200),
        entries in vec(vec(any::<u8>(), 0..20), 0..4),
    ) {
        let entries: Vec<Bytes> = entries.into_iter().map(Bytes::from).collect();
        decode_everything(&sealed(&body, &[]));
        decode_everything(&body);
        let head = sealed(&body, &entries);
        let _ = decode_append(peer::AppendRequest { hello: None, head, entries });
    }
}

fn sealed(body: &[u8], entries: &[Bytes]) -> Bytes {
    let mut payload = envelope::begin(body.len());
    payload.extend_from_slice(body);
    envelope::finish(payload, entries)
}

fn decode_everything(payload: &[u8]) {
    let _ = decode_append_result(payload);
    let _ = decode_vote_request(payload);
    let _ = decode_vote_result(payload);
    let _ = decode_transfer(payload);
    let _ = decode_transfer_result(payload);
    let _ = decode_snapshot_head(payload);
    let _ = decode_snapshot_id(payload);
    let _ = decode_vote(payload);
}

/// The head of a request to append, field by field, as a hostile peer could write it.
struct Head {
    vote_term: u64,
    committed: bool,
    previous: LogId,
    runs: Vec<(u64, u32)>,
    kinds: Vec<u8>,
}

impl Head {
    fn sound() -> Self {
        let previous = LogId { term: 2, node: NodeId(1), index: 7 };
        Self {
            vote_term: 3,
            committed: true,
            previous,
            runs: vec![(2, 1), (3, 1)],
            kinds: vec![1, 1],
        }
    }

    fn message(&self) -> peer::AppendRequest {
        let entries = vec![Bytes::from_static(b"entry"); 2];
        let mut head = envelope::begin(100);
        // Our own encoder refuses places that no log has.
        head.put_u64_le(self.vote_term);
        head.put_u64_le(1);
        head.put_u8(u8::from(self.committed));
        head.put_u8(1);
        head.put_u64_le(self.previous.term);
        head.put_u64_le(self.previous.node.0);
        head.put_u64_le(self.previous.index);
        put_option(&mut head, None, put_log_id);
        head.put_u32_le(u32::try_from(self.runs.len()).unwrap());
        for (term, count) in &self.runs {
            head.put_u64_le(*term);
            head.put_u64_le(1);
            head.put_u32_le(*count);
        }
        head.extend_from_slice(&self.kinds);
        peer::AppendRequest { hello: None, head: envelope::finish(head, &entries), entries }
    }
}

/// Requests that are well-formed bytes and impossible Raft are refused before openraft sees them.
#[test]
fn impossible_requests_to_append_are_refused() {
    let run = Error::Value("run");
    let term = Error::Value("term: it is not between its neighbours'");
    let check = |expected: Result<(), Error>, change: fn(&mut Head)| {
        let mut head = Head::sound();
        change(&mut head);
        assert_eq!(decode_append(head.message()).map(|_| ()), expected);
    };
    check(Ok(()), |_| ());
    check(Err(Error::Value("term")), |head| head.vote_term = u64::MAX);
    check(Err(Error::Value("term")), |head| head.runs[1].0 = u64::MAX);
    check(Err(Error::Value("index")), |head| head.previous.index = u64::MAX);
    check(Err(run.clone()), |head| head.previous.index = POSITION_MAX - 1);
    check(Err(Error::Value("vote: only a leader appends")), |head| head.committed = false);
    check(Err(term.clone()), |head| head.runs[0].0 = 1);
    check(Err(term), |head| head.runs[1].0 = 4);
    check(Err(run.clone()), |head| head.runs[0].1 = 0);
    check(Err(run.clone()), |head| head.runs[0].1 = u32::MAX);
    check(Err(run), |head| {
        head.runs.pop();
    });
    check(Err(Error::Kind { what: "an entry", found: 9 }), |head| head.kinds[0] = 9);
    check(Err(Error::Value("blank entry: it has bytes")), |head| head.kinds[0] = 0);
    check(Err(Error::Value("membership")), |head| head.kinds[0] = 2);
    check(Err(Error::Length), |head| head.kinds.push(1));
    check(Err(Error::Length), |head| {
        head.kinds.pop();
    });
}

/// A message cannot announce more entries than one may hold.
#[test]
fn the_number_of_entries_is_limited() {
    let mut message = Head::sound().message();
    message.entries = vec![Bytes::new(); ENTRIES_MAX + 1];
    let what = "entries in a message";
    let expected = Error::TooMany { what, count: ENTRIES_MAX + 1, limit: ENTRIES_MAX };
    assert_eq!(decode_append(message).map(|_| ()), Err(expected));
}

/// Payloads of another version are told apart from damaged ones.
#[test]
fn another_version_is_named() {
    let mut payload =
        encode_vote(&vote_to_raft(Vote { term: 1, node: NodeId(1), committed: true }));
    let mut other = payload.to_vec();
    other[0] = 2;
    assert_eq!(decode_vote(&other), Err(Error::Version(2)));
    let damaged = payload.split_to(payload.len() - 1);
    assert_eq!(decode_vote(&damaged), Err(Error::Checksum));
    assert_eq!(decode_vote(&[]), Err(Error::Length));
}

/// An entry out of its place is this node's own fault and is not sent.
#[test]
fn entries_with_a_hole_are_not_sent() {
    let id = |index| log_id_to_raft(LogId { term: 1, node: NodeId(1), index });
    let entry = |index| Entry { log_id: id(index), payload: EntryPayload::Blank };
    let request = AppendEntriesRequest {
        vote: vote_to_raft(Vote { term: 1, node: NodeId(1), committed: true }),
        prev_log_id: Some(id(4)),
        entries: vec![entry(5), entry(7)],
        leader_commit: None,
    };
    assert_eq!(encode_append(request).map(|_| ()), Err(Error::Value("index")));
}
