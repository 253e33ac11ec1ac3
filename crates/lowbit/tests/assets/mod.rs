//! Where the real models and data lie that some tests need.

use std::path::{Path, PathBuf};

/// The folder of models and data: `LOWBIT_ASSETS`, or `../shared/assets` seen
/// from the workspace's root. Without one `test` says that it is skipped.
///
/// # Panics
/// If there is none under `CI=true`.
pub fn find(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("LOWBIT_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets"), PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    let message = format!("{test} is skipped: {} is missing; set LOWBIT_ASSETS", folder.display());
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{message}");
    eprintln!("{message}");
    None
}
