//! What an agent keeps on disk and shows on its socket, as recorded files.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod disk;
mod shown;
