//! What the tests of whole clusters are written with. Everything is driven from outside, as an
//! operator and a client would: real `lockstep` processes, real sockets, real files.
//!
//! - [`cluster`]: nodes that belong together, their membership, and what is printed on failure.
//! - [`node`]: one process: started, killed, stopped, paused, asked for its status.
//! - [`link`]: the way from one node to another, which can be cut and healed.
//! - [`hostile`]: clients that mean harm, beside one that does not.
//! - [`load`]: writers that know what they were promised, and check that it was kept.
//! - [`kv`]: commands and replies of the reference guest.
//! - [`raw`]: calls that the client library would never make.
//! - [`peer`]: calls in the name of peers, and entries that no client can propose.
//! - [`python`]: clients that are not ours.
//! - [`program`]: the binary, the guests, and calls of the command line.
//! - [`files`]: damage to data folders, done offline.
//! - [`disk`]: a disk of a node's own, whose power can be cut.
//! - [`history`]: many clients on few keys, and the check of what all of them were told.
//! - [`clock`]: a wall clock that is wrong.
//! - [`faults`]: writes and syncs of a running node that fail, or take their time.
//! - [`frozen`]: a thread of a node that does not come back.
//! - [`folder`]: where all of this lies, and when it goes.
//! - [`diverge`]: a node with a state of its own.
//! - [`engine`]: a cluster that changes its engine.
//! - [`wait`]: the one way to wait: for a condition, with a deadline.
//! - [`ports`], [`seed`]: what runs of tests must not share, and what a replay needs.
//!
//! Nothing here is lenient: a helper that cannot do its part panics and says why.

pub mod clock;
pub mod cluster;
pub mod disk;
pub mod diverge;
pub mod engine;
pub mod faults;
pub mod files;
pub mod folder;
pub mod frozen;
pub mod history;
pub mod hostile;
pub mod kv;
pub mod link;
pub mod load;
pub mod node;
pub mod peer;
pub mod ports;
mod preload;
pub mod program;
pub mod python;
pub mod raw;
pub mod seed;
pub mod wait;
