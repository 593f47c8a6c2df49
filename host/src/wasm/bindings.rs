//! The host's side of `wit/guest.wit`, generated.

#![expect(unreachable_pub, clippy::all, reason = "generated code")]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "guest",
    ownership: Borrowing { duplicate_if_necessary: false },
});
