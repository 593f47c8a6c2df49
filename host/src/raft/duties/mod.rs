//! What a node does by itself, beside what it is asked: each file is one background task, or what
//! several of them share.

pub mod checkpoints;
pub mod courier;
pub mod election;
pub mod fitness;
pub mod modules;
pub mod profile;
pub mod pulse;
pub mod recovery;
pub mod rejoin;
pub mod reports;
pub mod scrub;
pub mod space;
pub mod stall;
pub mod timekeeper;
pub mod timing;
