//! The log store of openraft over `storage::Log`.
