//! The built binary, as a user runs it.

mod commands;
mod errors;
mod folder;
#[cfg(target_os = "linux")]
mod interrupt;
