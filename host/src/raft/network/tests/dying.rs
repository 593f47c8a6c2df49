//! Leaders whose process dies while a follower asks whether they lead.

use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::node::{CLUSTER, local, member};
use crate::raft::network::{Leads, Network};
use crate::types::NodeId;

/// However far the question has come when the process dies, it is known to be gone: the follower
/// does not leave it to the timers.
#[tokio::test]
async fn a_dying_leader_is_gone() {
    // Bytes of the connection that it still reads: none, some of the preface, or the question.
    for read in [0, 20, 24, 120, 200] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (caller, _) = local(1, Some(CLUSTER));
        let network = Network::new(caller, &Default::default());
        let dies = async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection.read_exact(&mut vec![0; read]).await.unwrap();
        };
        let leader = member(2, address);
        let asked = network.leads(NodeId(2), &leader, Duration::from_secs(10));
        let (leads, ()) = tokio::join!(asked, dies);
        assert!(matches!(leads, Leads::Gone), "it read {read} bytes: {leads:?}");
    }
}
