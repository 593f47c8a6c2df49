//! The gRPC messages and services of Lockstep, generated at build time from the `.proto` files of
//! this folder. Nothing is written by hand here but the module tree.

/// What clients and operators speak.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::too_many_lines,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("lockstep.v1");
    include!(concat!(env!("OUT_DIR"), "/limits.rs"));

    /// The descriptors of all services, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockstep.bin"));
}

/// What nodes speak to each other.
#[expect(missing_docs, unused_qualifications, clippy::too_many_lines, reason = "generated code")]
pub mod peer {
    tonic::include_proto!("lockstep.peer.v1");
}
