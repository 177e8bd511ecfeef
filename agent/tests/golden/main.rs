//! Golden tests: compare the agent's files on disk, and the answers of its local socket, with recorded ones.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod disk;
mod shown;
