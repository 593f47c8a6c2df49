//! A machine's guest over time: the thread that it lives on, the queries that wait for it, its
//! live instance with image and journal, and how a state comes into it.

pub(in crate::machine) mod expected;
pub(in crate::machine) mod history;
pub(in crate::machine) mod import;
pub(in crate::machine) mod instance;
pub(in crate::machine) mod outcome;
pub(in crate::machine) mod restoring;
pub(in crate::machine) mod thread;
pub(in crate::machine) mod window;
