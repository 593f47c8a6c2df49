//! The commands of one apply call: their bytes back to back, and where each of them ends. This is
//! the layout the guest sees, so an entry from the log reaches it without being taken apart.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::config::limits;
use crate::machine::entry::proposal::Error;
use crate::types::{Command, MachineId, SessionSlot};

/// Bytes of a batch before its offsets: machine, count, data length, session flag.
const HEAD_BYTES: usize = 8 + 4 + 4 + 1;
/// Bytes of one session slot.
const SLOT_BYTES: usize = 24;

/// The commands of one apply call.
///
/// Invariant: `ends` never decreases and its last value is the length of `data`; `sessions` is
/// empty or as long as `ends`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    machine: MachineId,
    ends: Vec<u32>,
    sessions: Vec<Option<SessionSlot>>,
    data: Bytes,
}

impl Batch {
    /// Puts commands of one machine into a batch, in order.
    pub fn new(machine: MachineId, commands: &[Command]) -> Self {
        let length = commands.iter().map(|command| command.bytes.len()).sum();
        let mut data = BytesMut::with_capacity(length);
        let mut ends = Vec::with_capacity(commands.len());
        for command in commands {
            data.put_slice(&command.bytes);
            ends.push(u32::try_from(data.len()).expect("the proposer bounds entries"));
        }
        assert!(!commands.is_empty(), "a batch has commands");
        assert!(
            commands.len() <= limits::ENTRY_COMMANDS_MAX,
            "what is written can be read: {} commands in one batch",
            commands.len()
        );
        assert!(
            commands.iter().all(|command| command.machine == machine),
            "a batch is for one machine"
        );
        let in_session = commands.iter().any(|command| command.session.is_some());
        let sessions = commands.iter().filter(|_| in_session).map(|command| command.session);
        Self { machine, ends, sessions: sessions.collect(), data: data.freeze() }
    }

    /// The machine the batch is for.
    pub fn machine(&self) -> MachineId {
        self.machine
    }

    /// Number of commands.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// All commands, back to back.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Where each command ends in `data`.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// A batch of some commands of this one, by their positions. The data is not copied.
    pub(in crate::machine) fn part(&self, part: Range<usize>) -> Self {
        let count = self.count();
        assert!(part.start < part.end && part.end <= count, "commands {part:?} of {count}");
        let before = if part.start == 0 { 0 } else { self.ends[part.start - 1] };
        let ends: Vec<u32> = self.ends[part.clone()].iter().map(|end| end - before).collect();
        let at = |offset: u32| usize::try_from(offset).expect("32 bits fit");
        let data = self.data.slice(at(before)..at(self.ends[part.end - 1]));
        let sessions = self.sessions.get(part).unwrap_or_default().to_vec();
        Self { machine: self.machine, ends, sessions, data }
    }

    /// Length of the encoded batch.
    pub(in crate::machine) fn encoded_bytes(&self) -> usize {
        HEAD_BYTES + 4 * self.ends.len() + SLOT_BYTES * self.sessions.len() + self.data.len()
    }

    /// Writes the batch (docs/formats.md, "Commands").
    pub(in crate::machine) fn put(&self, out: &mut BytesMut) {
        let before = out.len();
        let length = |length: usize| u32::try_from(length).expect("the proposer bounds entries");
        out.put_u64_le(self.machine.0);
        out.put_u32_le(length(self.ends.len()));
        out.put_u32_le(length(self.data.len()));
        out.put_u8(u8::from(!self.sessions.is_empty()));
        self.ends.iter().for_each(|end| out.put_u32_le(*end));
        for slot in &self.sessions {
            let absent = SessionSlot { session: 0, sequence: 0, acknowledged_up_to: 0 };
            let slot = slot.unwrap_or(absent);
            out.put_u64_le(slot.session);
            out.put_u64_le(slot.sequence);
            out.put_u64_le(slot.acknowledged_up_to);
        }
        out.put_slice(&self.data);
        assert_eq!(out.len() - before, self.encoded_bytes(), "a batch is as long as it said");
    }

    /// Reads a batch from the front of `body` and checks it; the data is not copied.
    pub(in crate::machine) fn take(body: &mut Bytes) -> Result<Self, Error> {
        if body.len() < HEAD_BYTES {
            return Err(Error::Malformed("a batch is cut short"));
        }
        let machine = MachineId(body.get_u64_le());
        let count = usize::try_from(body.get_u32_le()).expect("32 bits fit");
        let length = usize::try_from(body.get_u32_le()).expect("32 bits fit");
        let in_session = match body.get_u8() {
            0 => false,
            1 => true,
            _ => return Err(Error::Malformed("a batch's session flag is neither 0 nor 1")),
        };
        if count == 0 || count > limits::ENTRY_COMMANDS_MAX {
            return Err(Error::Malformed("a batch's count is out of range"));
        }
        let slots_bytes = if in_session { SLOT_BYTES * count } else { 0 };
        if body.len() < 4 * count + slots_bytes + length {
            return Err(Error::Malformed("a batch is cut short"));
        }
        let ends: Vec<u32> = (0..count).map(|_| body.get_u32_le()).collect();
        let sessions: Vec<_> = (0..slots_bytes / SLOT_BYTES).map(|_| take_slot(body)).collect();
        let data = body.split_to(length);
        check_ends(&ends, length)?;
        assert!(sessions.is_empty() || sessions.len() == count, "a slot for each command, or none");
        Ok(Self { machine, ends, sessions, data })
    }
}

fn take_slot(body: &mut Bytes) -> Option<SessionSlot> {
    let slot = SessionSlot {
        session: body.get_u64_le(),
        sequence: body.get_u64_le(),
        acknowledged_up_to: body.get_u64_le(),
    };
    (slot.session != 0).then_some(slot)
}

/// Ends never decrease and the last one is the length of the data.
fn check_ends(ends: &[u32], length: usize) -> Result<(), Error> {
    let ordered = ends.windows(2).all(|pair| pair[0] <= pair[1]);
    let last = ends.last().and_then(|end| usize::try_from(*end).ok());
    if ordered && last == Some(length) {
        Ok(())
    } else {
        Err(Error::Malformed("a batch's ends do not cover its data"))
    }
}
