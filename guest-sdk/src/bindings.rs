//! The contract of `wit/guest.wit` as Rust, generated. Only `export!` and `runtime` use it.

#![allow(unreachable_pub, clippy::all, reason = "generated")]

wit_bindgen::generate!({
    path: "../wit",
    world: "guest",
    pub_export_macro: true,
    default_bindings_module: "lockstep_guest_sdk::bindings",
});
