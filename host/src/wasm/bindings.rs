//! The contract of `wit/guest.wit` as the host calls it, generated, and the one import.

// Generated code: its lints are not ours.
#[allow(unsafe_code, unreachable_pub, clippy::all, unused_qualifications, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "guest",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmStr};

pub(super) use generated::exports::lockstep::guest::machine::{
    Batch, Context, Guest as Calls, Manifest, Replies,
};
pub(super) use generated::lockstep::guest::log::Level;
pub(super) use generated::{Guest as Instance, GuestPre as Prepared};

use super::limits::{Room, cut};

/// Name of the import that a guest may have.
pub(super) const LOG: &str = "lockstep:guest/log@0.1.0";
/// Name of the export that a guest must have.
pub(super) const MACHINE: &str = "lockstep:guest/machine@0.1.0";

/// Offers `log`.
///
/// Only the beginning of the first messages of a call is looked at: copying them would let a
/// guest make the host copy without end for little fuel. A message that is not text is no
/// reason to fail a call; it is said to be none.
pub(super) fn add_log(linker: &mut Linker<Room>) -> wasmtime::Result<()> {
    linker.instance(LOG)?.func_wrap(
        "log",
        |mut store: StoreContextMut<'_, Room>, (level, message): (Level, WasmStr)| {
            if store.data_mut().takes_line(level) {
                let message = match message.to_str(&store) {
                    Ok(text) => cut(&text).to_owned(),
                    Err(_) => "(a line that is not text)".to_owned(),
                };
                store.data_mut().write_line(level, &message);
            }
            Ok(())
        },
    )
}
