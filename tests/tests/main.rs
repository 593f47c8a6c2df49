//! Whole clusters, from outside. Each test begins with the sentence that it claims. One binary
//! for all of them: it links once, and bounds how many clusters run together.

mod agreement;
mod clients;
mod commands;
mod crashes;
mod daemon;
mod damage;
mod deploy;
mod dev;
mod disk_faults;
mod divergence;
mod endings;
mod engine_change;
mod failover;
mod full_follower;
mod growth;
mod guest_logs;
mod history;
mod hostility;
mod limits;
mod machine_limits;
mod membership;
mod no_room;
mod parking;
mod power;
mod queries;
mod reads;
mod refusals;
mod restarts;
mod restore;
mod snapshots;
mod stops;
mod time;
mod undisturbed;
mod useless_leaders;
mod went_back;
