//! The network on loopback: against a scripted peer, and between real nodes of openraft.

mod cluster;
mod dying;
mod handshake;
mod memory;
mod node;
mod scripted;
mod snapshots;
mod strangers;
