//! The reference guest and its commands.

use std::sync::Arc;

use anyhow::Result;
use lockstep_host::machine::{Batch, Blueprint, Instance, MemoryHistory};
use lockstep_host::types::{Command, MachineId};
use lockstep_host::wasm::{self, Context, Engine, Limits, Module};

/// Bytes of replies of a batch, as of an entry.
pub(crate) const ROOM: usize = lockstep_host::config::limits::ENTRY_REPLIES_BYTES_MAX;
/// Where and when every call stands: nothing of the guest depends on it here.
pub(crate) const CONTEXT: Context = Context { index: 7, time_ms: 1_700_000_000_000, seed: 3 };
/// Bytes of a value where the size of the state is what matters.
pub(crate) const VALUE_BYTES: usize = 1000;

/// What guests are made from.
pub(crate) struct Guests {
    pub(crate) engine: Engine,
    pub(crate) module: Module,
}

/// Requests laid out as a guest gets them.
#[derive(Clone, Default)]
pub(crate) struct Requests {
    pub(crate) data: Vec<u8>,
    pub(crate) ends: Vec<u32>,
}

impl Requests {
    /// Adds a request of these words.
    pub(crate) fn push(&mut self, words: &[&[u8]]) {
        self.data.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            self.data.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            self.data.extend_from_slice(word);
            self.data.extend_from_slice(b"\r\n");
        }
        self.ends.push(u32::try_from(self.data.len()).expect("batches are small"));
    }

    pub(crate) fn batch(&self) -> wasm::Batch<'_> {
        wasm::Batch { data: &self.data, ends: &self.ends }
    }

    /// The same as the log has them.
    pub(crate) fn logged(&self) -> Batch {
        let mut start = 0;
        let command = |end: &u32| {
            let end = usize::try_from(*end).expect("32 bits fit");
            let bytes = self.data[start..end].to_vec().into();
            start = end;
            Command { machine: MachineId(1), session: None, bytes }
        };
        Batch::new(MachineId(1), &self.ends.iter().map(command).collect::<Vec<_>>())
    }
}

/// The 16 bytes of a key, scattered as hashed ones are.
pub(crate) fn key(number: u64) -> Vec<u8> {
    format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_bytes()
}

/// Half SET, half GET, of keys below `keys`.
pub(crate) fn mixed(random: &mut fastrand::Rng, keys: u64, count: usize, value: &[u8]) -> Requests {
    let mut requests = Requests::default();
    for _ in 0..count {
        let key = key(random.u64(..keys));
        if random.bool() {
            requests.push(&[b"SET", &key, value]);
        } else {
            requests.push(&[b"GET", &key]);
        }
    }
    requests
}

/// GETs of keys below `keys`.
pub(crate) fn reads(random: &mut fastrand::Rng, keys: u64, count: usize) -> Requests {
    let mut requests = Requests::default();
    (0..count).for_each(|_| requests.push(&[b"GET", &key(random.u64(..keys))]));
    requests
}

impl Guests {
    /// A machine's guest with `limits`, holding `keys` keys.
    pub(crate) fn filled(&self, keys: u64, value: &[u8], limits: Limits) -> Result<Instance> {
        let (engine, module) = (self.engine.clone(), self.module.clone());
        // Nothing is looked up: what follows the image taken at the end is little.
        let history = Arc::new(MemoryHistory::default());
        let mut instance = Instance::start(Blueprint { engine, module, limits, history })?;
        let mut number = 0;
        while number < keys {
            let mut requests = Requests::default();
            for _ in 0..256.min(keys - number) {
                requests.push(&[b"SET", &key(number), value]);
                number += 1;
            }
            instance.apply(CONTEXT, &requests.logged(), ROOM)?;
        }
        instance.freeze()?;
        Ok(instance)
    }

    /// Keys that make a state of so many MiB.
    pub(crate) fn keys_of(mib: usize) -> u64 {
        u64::try_from((mib << 20) / (VALUE_BYTES + 60)).expect("it fits")
    }
}
