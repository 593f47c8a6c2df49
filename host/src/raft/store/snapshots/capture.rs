//! A snapshot of this node's own state on its way to disk.
//!
//! What cannot be had for it (a file, a module's bytes, a fork) is tried again, with the alarm
//! standing, until a later checkpoint takes the place of this one: the log still has everything.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Snapshots;
use super::content::{PIECES_AHEAD, SECTION_DIGEST};
use super::description::Description;
use crate::machine::snapshot::content::Piece;
use crate::machine::snapshot::unsent::Unsent;
use crate::machine::{ContentDigest, FrozenState};
use crate::storage::Error;
use crate::storage::snapshot::{Snapshot, SnapshotWriter};
use crate::types::LogId;

/// Wait before what could not be had is tried again; it doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A snapshot under way.
pub struct Capture {
    /// What comes of it.
    pub task: JoinHandle<Captured>,
    /// Ends all tries.
    pub give_up: CancellationToken,
}

/// What came of a capture.
pub struct Captured {
    /// The file, once it is whole and synced.
    pub written: Result<Snapshot, Error>,
    /// What became of sending the state, if that was begun: sentences about guests that could not
    /// export theirs.
    pub sent: Option<Result<Vec<String>, Unsent>>,
}

impl Capture {
    /// Begins to write a frozen state, as of `last`.
    pub fn begin(
        snapshots: Arc<Snapshots>,
        last: LogId,
        description: &Description,
        frozen: FrozenState,
    ) -> Self {
        let meta = description.encode();
        let give_up = CancellationToken::new();
        let mut patience = Patience { snapshots, give_up: give_up.clone(), pause: PAUSE_MIN };
        let task = tokio::spawn(async move {
            let writer = match opened(last, meta.into(), &mut patience).await {
                Ok(writer) => writer,
                Err(error) => return Captured { written: Err(error), sent: None },
            };
            // Not before: what is sent needs descriptors as well, to read modules.
            let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
            let runtime = Handle::current();
            let retry = move |reason: &str| {
                runtime.block_on(patience.wait(format!("a snapshot waits: {reason}")))
            };
            let sent = frozen.send(pieces, Box::new(retry));
            let written = blocking(move || write(writer, receiver)).await;
            let sent = match sent {
                Ok(sent) => sent.await.ok(),
                Err(unsent) => Some(Err(unsent)),
            };
            Captured { written, sent }
        });
        Self { task, give_up }
    }
}

/// The tries of one snapshot.
struct Patience {
    snapshots: Arc<Snapshots>,
    give_up: CancellationToken,
    pause: Duration,
}

impl Patience {
    /// Raises the alarm and waits; false where there is no use in another try.
    async fn wait(&mut self, reason: String) -> bool {
        self.snapshots.alarms.set_unwritten(reason);
        tokio::select! {
            () = tokio::time::sleep(self.pause) => {
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                true
            }
            () = self.give_up.cancelled() => false,
        }
    }
}

/// Opens the file; see the top of this one.
async fn opened(
    last: LogId,
    meta: Arc<[u8]>,
    patience: &mut Patience,
) -> Result<SnapshotWriter, Error> {
    loop {
        let (dir, meta) = (patience.snapshots.dir.clone(), Arc::clone(&meta));
        let error = match blocking(move || dir.begin(Some(last), &meta)).await {
            Ok(writer) => return Ok(writer),
            Err(error) => error,
        };
        if !error.may_pass() || !patience.wait(unwritten(&error)).await {
            return Err(error);
        }
    }
}

/// Disk work, off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// What an alarm says of a snapshot that cannot be written.
pub fn unwritten(error: &Error) -> String {
    let what = match (error.is_no_room(), error.may_pass()) {
        (true, _) => "no room for a snapshot",
        (false, true) => "no file for a snapshot can be opened",
        (false, false) => "a snapshot cannot be written",
    };
    format!("{what}: {error}")
}

/// Writes pieces to a file until they end; a capture that is broken off leaves none.
fn write(mut writer: SnapshotWriter, mut pieces: mpsc::Receiver<Piece>) -> Result<Snapshot, Error> {
    let mut digest = ContentDigest::default();
    while let Some(piece) = pieces.blocking_recv() {
        digest.add(&piece);
        match piece {
            Piece::Begin(kind) => writer.section(kind)?,
            Piece::Chunk(bytes) => writer.chunk(&bytes)?,
            Piece::End => {
                writer.section(SECTION_DIGEST)?;
                writer.chunk(&digest.finish().0)?;
                return writer.finish();
            }
        }
    }
    Err(Error::Refused("the capture of a snapshot was broken off".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk without room and a process without descriptors pass by themselves; what may be a
    /// fault of the disk does not. Each is told.
    #[test]
    fn what_may_pass_is_known() {
        let rows = [
            (libc::EMFILE, true, "no file for a snapshot can be opened"),
            (libc::ENFILE, true, "no file for a snapshot can be opened"),
            (libc::ENOSPC, true, "no room for a snapshot"),
            (libc::EDQUOT, true, "no room for a snapshot"),
            (libc::EIO, false, "a snapshot cannot be written"),
            (libc::EACCES, false, "a snapshot cannot be written"),
        ];
        for (code, passes, expected) in rows {
            let source = Arc::new(std::io::Error::from_raw_os_error(code));
            let error = Error::Io { path: "snapshots".into(), source };
            assert_eq!(error.may_pass(), passes, "{error}");
            assert!(unwritten(&error).starts_with(expected), "{error}");
        }
    }
}
