//! Ctrl-C: noted, and turned into an error where a command reports progress,
//! so that nothing is left half-written.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Notes Ctrl-C from now on. A second one ends the process at once.
pub fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })?;
    Ok(())
}

/// An error once Ctrl-C was pressed.
pub fn check() -> lowbit::Result<()> {
    if ASKED.load(Ordering::SeqCst) { Err(lowbit::Error::Interrupted) } else { Ok(()) }
}
