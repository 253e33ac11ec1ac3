//! Folders of images.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, invalid};

/// Endings of the files that are read.
pub(super) const READ: [&str; 3] = [".jpg", ".jpeg", ".png"];

/// Endings of pictures that are not: to skip them would change a result silently.
const REFUSED: [&str; 10] =
    [".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".heic", ".avif", ".jxl"];

/// The images of a folder and their classes, as
/// [`Dataset::open`](super::Dataset::open) tells.
pub(super) fn list(folder: &Path) -> Result<(Vec<PathBuf>, Option<Vec<usize>>)> {
    let place = || folder.display().to_string();
    let (files, subfolders) = entries(folder)?;
    if subfolders.is_empty() {
        if files.is_empty() {
            return Err(invalid!("holds no JPEG or PNG image").at(place()));
        }
        let labels = files.iter().map(|path| class_prefix(path)).collect();
        return Ok((files, labels));
    }
    if let Some(file) = files.first() {
        return Err(invalid!(
            "holds images ({}) beside folders ({}); an image of a class belongs in the class's folder",
            file.display(),
            subfolders[0].display()
        )
        .at(place()));
    }
    let (mut paths, mut labels) = (vec![], vec![]);
    for (class, subfolder) in subfolders.iter().enumerate() {
        let (files, nested) = entries(subfolder)?;
        if files.is_empty() || !nested.is_empty() {
            return Err(invalid!("a class's folder holds JPEG or PNG images, at least one, and no folder")
                .at(subfolder.display().to_string()));
        }
        labels.resize(labels.len() + files.len(), class);
        paths.extend(files);
    }
    Ok((paths, Some(labels)))
}

/// Images and folders in `folder`, each sorted; hidden ones and files that are
/// no pictures are left out.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let io = |e| Error::io(folder, e);
    let (mut files, mut folders) = (vec![], vec![]);
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            folders.push(path);
        } else if READ.iter().any(|e| name.ends_with(e)) {
            files.push(path);
        } else if REFUSED.iter().any(|e| name.ends_with(e)) {
            return Err(invalid!("only JPEG and PNG images are read; convert it or move it away")
                .at(path.display().to_string()));
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}

/// The class in a file name such as `0042_n01694178.jpg`.
fn class_prefix(path: &Path) -> Option<usize> {
    let (digits, _) = path.file_name()?.to_str()?.split_once('_')?;
    (digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}
