//! The network of openraft over gRPC.
