//! `cluster add`: asks the new node who it is, and refuses what would end badly: a node of another
//! cluster, an id that is taken, a disk that was wiped. Every refusal says what repairs it.

use std::net::SocketAddr;
use std::time::Duration;

use super::check::echo;
use super::error::Error as DoorError;
use crate::api::grpc;
use crate::raft::Error;
use crate::raft::admin::moved;
use crate::raft::ask::status::{NodeStatus, Role, Status};
use crate::types::{ClusterId, Incarnation, Member, NodeId};

/// How long the new node may take to say who it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// What a node says of itself that is to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::api) struct Newcomer {
    /// Its id, whatever that is.
    pub(in crate::api) node: NodeId,
    /// Which disk it has, if it says so.
    pub(in crate::api) incarnation: Option<Incarnation>,
    /// The cluster that it is in.
    pub(in crate::api) cluster: Option<ClusterId>,
    /// What it computes with.
    pub(in crate::api) engine_profile: String,
    /// Where it serves peers, as it says.
    pub(in crate::api) peer_addr: String,
    /// Where it serves clients, as it says.
    pub(in crate::api) client_addr: String,
    /// A broken invariant or a disk error ended it.
    pub(in crate::api) has_stopped: bool,
}

/// A node that is in the cluster now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) struct Added {
    /// Its id.
    pub(in crate::api) node: NodeId,
    /// Whether it votes.
    pub(in crate::api) voter: bool,
}

/// What to do with the node that was asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// It is new: add it under this id.
    New(NodeId, Member),
    /// The same disk is a learner already.
    Learner(NodeId),
    /// The same disk is a voter already.
    Voter(NodeId),
}

/// Fails unless this node leads: only the leader changes the membership.
pub(super) fn check_leads(own: &Status) -> Result<(), Error> {
    match (own.role, own.leader) {
        (Role::Leader, _) => Ok(()),
        (Role::Uninitialized, _) => Err(Error::Uninitialized),
        (_, None) => Err(Error::NoLeader),
        (_, Some(leader)) => match own.nodes.iter().find(|node| node.node == leader) {
            Some(NodeStatus { member, .. }) => {
                Err(Error::NotLeader { leader: (leader, member.clone()) })
            }
            None => Err(Error::NoLeader),
        },
    }
}

/// Asks the node at `client_addr` who it is.
pub(super) async fn ask(client_addr: &str) -> Result<Newcomer, DoorError> {
    grpc::ask(client_addr, ASK_TIMEOUT).await.map_err(|error| {
        let error = echo(&error.message);
        Error::Refused(format!(
            "the node at {client_addr} does not answer: {error}. Start it with `lockstep serve`, \
             and name the address given to it as --client-addr"
        ))
        .into()
    })
}

/// Decides what to do with the node that answered `theirs` at `client_addr`.
pub(super) fn examine(
    own: &Status,
    client_addr: &str,
    theirs: &Newcomer,
) -> Result<Joining, Error> {
    let id = theirs.node;
    let refuse = |text: String| Err(Error::Refused(text));
    if let Err(reason) = id.check() {
        return refuse(format!("the node at {client_addr} says that it is node {id}: {reason}"));
    }
    let Some(incarnation) = theirs.incarnation else {
        return refuse(format!("the node at {client_addr} does not say which disk it has"));
    };
    if incarnation == own.incarnation {
        return refuse(format!("{client_addr} is this node: name the address of the new one"));
    }
    if let Some(cluster) = theirs.cluster
        && Some(cluster) != own.cluster
    {
        return refuse(format!(
            "node {id} at {client_addr} is in another cluster, {cluster}. If its data is not \
             needed: stop it, delete its data folder, start it again, and add it then"
        ));
    }
    let member = Member {
        peer_addr: reachable(&theirs.peer_addr, client_addr),
        client_addr: reachable(&theirs.client_addr, client_addr),
        incarnation: incarnation.0,
    };
    if let Err(reason) = member.check() {
        let addresses = [&member.peer_addr, &member.client_addr].map(|text| echo(text));
        let [peers, clients] = addresses;
        return refuse(format!(
            "node {id} at {client_addr} says that it is at {peers:?} for peers and at {clients:?} \
             for clients: {reason}"
        ));
    }
    if let Some(known) = own.nodes.iter().find(|node| node.node == id) {
        return examine_known(known, client_addr, &member, theirs);
    }
    if theirs.has_stopped {
        return refuse(format!("node {id} at {client_addr} has stopped: its log says why"));
    }
    if theirs.engine_profile != own.engine_profile {
        return refuse(format!(
            "node {id} at {client_addr} would not compute the same state: its engine profile is \
             {}, this cluster's is {}. Run the same version of lockstep on the same architecture",
            echo(&theirs.engine_profile),
            own.engine_profile
        ));
    }
    if let Some(other) = own.nodes.iter().find(|node| node.member.peer_addr == member.peer_addr) {
        return refuse(format!(
            "the peer address {} of node {id} is in the membership as node {}'s. If that node is \
             gone: `lockstep cluster remove {}` first",
            member.peer_addr, other.node, other.node
        ));
    }
    Ok(Joining::New(id, member))
}

fn examine_known(
    known: &NodeStatus,
    client_addr: &str,
    member: &Member,
    theirs: &Newcomer,
) -> Result<Joining, Error> {
    let id = known.node;
    if known.member.incarnation == member.incarnation {
        let stays = is_at(&known.member.peer_addr, &theirs.peer_addr)
            && is_at(&known.member.client_addr, &theirs.client_addr);
        return match known.voter {
            _ if !stays => Err(Error::Refused(moved(id, &known.member, member))),
            true => Ok(Joining::Voter(id)),
            false => Ok(Joining::Learner(id)),
        };
    }
    Err(Error::Refused(format!(
        "node id {id} is a member already, with another disk than the node at {client_addr} has. \
         Start the new node with an id of its own on an empty data folder, and add it; if the \
         other disk is gone, `lockstep cluster remove {id}`"
    )))
}

/// Whether a node that gives this address for itself can be the one that is known at another: it
/// may listen on all interfaces, one of which is known.
fn is_at(known: &str, own: &str) -> bool {
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    match own.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => port(known) == port(own),
        _ => known == own,
    }
}

/// The address a node gives for itself, or, when that says "all interfaces", the same port on the
/// host by which the operator reached it.
fn reachable(own: &str, reached: &str) -> String {
    let Ok(address) = own.parse::<SocketAddr>() else { return own.to_owned() };
    let host = reached.trim_start_matches("http://").rsplit_once(':').map(|(host, _)| host);
    match host {
        Some(host) if address.ip().is_unspecified() => format!("{host}:{}", address.port()),
        _ => own.to_owned(),
    }
}

#[cfg(test)]
pub(in crate::api) mod tests {
    use crate::types::LogIndex;

    use super::*;

    /// A leader with id 1 of cluster 7 that has a learner with id 2.
    pub(in crate::api) fn status() -> Status {
        let member = |port: u16, incarnation: u8| Member {
            peer_addr: format!("127.0.0.1:{}", port + 100),
            client_addr: format!("127.0.0.1:{port}"),
            incarnation: [incarnation; 16],
        };
        let node =
            |id: u64, voter, member| NodeStatus { node: NodeId(id), voter, member, matched: None };
        let none: Option<LogIndex> = None;
        Status {
            node: NodeId(1),
            cluster: Some(ClusterId([7; 16])),
            incarnation: Incarnation([1; 16]),
            engine_profile: "p".into(),
            member: member(7401, 1),
            role: Role::Leader,
            term: 1,
            leader: Some(NodeId(1)),
            last_log: none,
            committed: none,
            applied: none,
            snapshot: none,
            snapshot_age: None,
            purged: none,
            nodes: vec![node(1, true, member(7401, 1)), node(2, false, member(7402, 2))],
            machines: Vec::new(),
            parked: None,
            checkpoints: Default::default(),
            cluster_limits: Default::default(),
            halted: None,
            replicated_profile: None,
            sealed: None,
            change: None,
            alarms: Vec::new(),
        }
    }

    fn newcomer(id: u64, incarnation: u8) -> Newcomer {
        Newcomer {
            node: NodeId(id),
            incarnation: Some(Incarnation([incarnation; 16])),
            cluster: None,
            engine_profile: "p".into(),
            peer_addr: format!("127.0.0.1:{}", 7500 + id),
            client_addr: format!("127.0.0.1:{}", 7400 + id),
            has_stopped: false,
        }
    }

    /// A new node is added as it says of itself; one already there is recognised by its disk.
    #[test]
    fn welcome_nodes() {
        let check = |theirs: &Newcomer| examine(&status(), "127.0.0.1:7403", theirs);
        let member = Member {
            peer_addr: "127.0.0.1:7503".into(),
            client_addr: "127.0.0.1:7403".into(),
            incarnation: [3; 16],
        };
        assert_eq!(check(&newcomer(3, 3)), Ok(Joining::New(NodeId(3), member)));
        assert_eq!(check(&newcomer(2, 2)), Ok(Joining::Learner(NodeId(2))));
        let everywhere = Newcomer { peer_addr: "0.0.0.0:7502".into(), ..newcomer(2, 2) };
        assert_eq!(check(&everywhere), Ok(Joining::Learner(NodeId(2))));
        let same_cluster = Newcomer { cluster: Some(ClusterId([7; 16])), ..newcomer(3, 3) };
        assert!(matches!(check(&same_cluster), Ok(Joining::New(..))));
    }

    /// Each node that would end badly is refused, with a reason and a repair.
    #[test]
    fn refused_nodes() {
        let rows = [
            (newcomer(3, 1), "is this node"),
            (newcomer(1, 3), "node id 1 is a member already"),
            (newcomer(2, 9), "cluster remove 2"),
            (
                Newcomer { client_addr: "127.0.0.1:7499".into(), ..newcomer(2, 2) },
                "says now that it has 127.0.0.1:7502 and 127.0.0.1:7499",
            ),
            (Newcomer { cluster: Some(ClusterId([8; 16])), ..newcomer(3, 3) }, "another cluster"),
            (Newcomer { engine_profile: "q".into(), ..newcomer(3, 3) }, "engine profile"),
            (Newcomer { peer_addr: "127.0.0.1:7502".into(), ..newcomer(3, 3) }, "node 2's"),
            (Newcomer { has_stopped: true, ..newcomer(3, 3) }, "has stopped"),
            (Newcomer { incarnation: None, ..newcomer(3, 3) }, "which disk"),
        ];
        for (theirs, expected) in rows {
            let error = examine(&status(), "127.0.0.1:7403", &theirs).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    /// A node that listens on all interfaces is reached by the host the operator named.
    #[test]
    fn unspecified_addresses_are_completed() {
        assert_eq!(reachable("0.0.0.0:7503", "db3.example:7403"), "db3.example:7503");
        assert_eq!(reachable("[::]:7503", "[::1]:7403"), "[::1]:7503");
        assert_eq!(reachable("127.0.0.1:7503", "db3.example:7403"), "127.0.0.1:7503");
    }

    /// Only the leader adds nodes; another node says who leads, if it knows.
    #[test]
    fn only_the_leader_adds() {
        assert_eq!(check_leads(&status()), Ok(()));
        let follower = Status { role: Role::Follower, leader: Some(NodeId(2)), ..status() };
        let member = status().nodes[1].member.clone();
        assert_eq!(check_leads(&follower), Err(Error::NotLeader { leader: (NodeId(2), member) }));
        let lost = Status { leader: None, ..follower };
        assert_eq!(check_leads(&lost), Err(Error::NoLeader));
        let fresh = Status { role: Role::Uninitialized, leader: None, ..status() };
        assert_eq!(check_leads(&fresh), Err(Error::Uninitialized));
    }
}
