//! What was applied, found in the log again. Checkpoints renew the images that guests are
//! brought back to, and the log is kept from an earlier checkpoint on (`Snapshots::purgeable`), so
//! it is there.

use std::io;

use crate::machine::{Batch, History, Proposal};
use crate::raft::store::log_store;
use crate::storage::Log;
use crate::types::{LogIndex, MachineId};

/// The log, as guests look back on it.
pub struct LogHistory(pub Log);

impl History for LogHistory {
    fn batch(&self, index: LogIndex, machine: MachineId) -> io::Result<Batch> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let read = self.0.read(index..index + 1).map_err(|error| error.into_io())?;
        let bytes = read.into_iter().find_map(|(_, payload)| log_store::proposed(payload));
        let bytes = bytes.ok_or_else(|| invalid("the log has no proposal there".to_owned()))?;
        let proposal = Proposal::decode(&bytes).map_err(|error| invalid(error.to_string()))?;
        let Proposal::Commands { batches, .. } = proposal else {
            return Err(invalid("the entry holds no commands".to_owned()));
        };
        let mut of_machine = batches.into_iter().filter(|batch| batch.machine() == machine);
        match (of_machine.next(), of_machine.next()) {
            (Some(batch), None) => Ok(batch),
            (None, _) => Err(invalid("the entry has no commands of the machine".to_owned())),
            (Some(_), Some(_)) => Err(invalid("the entry has two batches of it".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;

    use super::*;
    use crate::config::FileConfig;
    use crate::storage::{LogConfig, LogPlace};
    use crate::types::{Command, Incarnation, LogId, NodeId};

    fn batch(machine: u64, text: &'static str) -> Batch {
        let bytes = Bytes::from_static(text.as_bytes());
        let command = Command { machine: MachineId(machine), session: None, bytes };
        Batch::new(MachineId(machine), &[command])
    }

    fn append(log: &Log, index: LogIndex, proposal: &Proposal) {
        let (sender, synced) = mpsc::channel();
        let id = LogId { term: 1, node: NodeId(1), index };
        let done = Box::new(move |result| sender.send(result).unwrap());
        log.append([(id, log_store::proposal(proposal.encode()))], done).unwrap();
        synced.recv().unwrap().unwrap();
    }

    /// Each machine's batch comes back as it was; what the log does not have is an error.
    #[test]
    fn batches_come_back_from_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let place = LogPlace {
            folder: folder.path().join("log"),
            ledger: folder.path().join("log-ledger"),
            owner: Incarnation([7; 16]),
        };
        let log = Log::open(&place, &LogConfig::from(&FileConfig::default())).unwrap();
        let (one, other) = (batch(1, "first"), batch(2, "second"));
        let batches = vec![one.clone(), other.clone()];
        append(&log, 0, &Proposal::Checkpoint);
        append(&log, 1, &Proposal::Commands { time_ms: 5, batches });
        append(&log, 2, &Proposal::Checkpoint);
        append(
            &log,
            3,
            &Proposal::Commands { time_ms: 6, batches: vec![one.clone(), one.clone()] },
        );
        let history = LogHistory(log);
        assert_eq!(history.batch(1, MachineId(1)).unwrap(), one);
        assert_eq!(history.batch(1, MachineId(2)).unwrap(), other);
        for (index, machine, reason) in [
            (1, 3, "the entry has no commands of the machine"),
            (2, 1, "the entry holds no commands"),
            (3, 1, "the entry has two batches of it"),
            (4, 1, "the log has no proposal there"),
        ] {
            let error = history.batch(index, MachineId(machine)).unwrap_err();
            assert_eq!(error.to_string(), reason, "{index} {machine}");
        }
    }
}
