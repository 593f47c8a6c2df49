//! A guest that breaks the contract on request.
