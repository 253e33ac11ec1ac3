//! Results that are kept as they come, so that interrupted work goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::files::write_atomically;
use crate::error::{Error, Result, invalid};

/// What a file of results may hold, in bytes.
const MOST: u64 = 64 << 20;

/// Results, and the file that holds them, if they are kept: JSON, one object a line, of
/// which the first says what the results are of.
#[derive(Debug)]
pub(crate) struct Journal<L> {
    lines: Vec<L>,
    file: Option<(PathBuf, File)>,
}

impl<L: Serialize + DeserializeOwned> Journal<L> {
    /// The results in the file at `path`, which is made if it is not there. What an
    /// interrupted write has left at its end is dropped.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is of other results.
    pub fn open<H>(path: Option<&Path>, header: &H) -> Result<Journal<L>>
    where
        H: Serialize + DeserializeOwned + PartialEq,
    {
        let Some(path) = path else { return Ok(Journal { lines: vec![], file: None }) };
        let io = |e| Error::io(path, e);
        let mut text = String::new();
        if path.exists() {
            File::open(path).and_then(|f| f.take(MOST).read_to_string(&mut text)).map_err(io)?;
        }
        let lines: Vec<L> = parsed(&text, header).map_err(|e| e.at(path.display().to_string()))?;
        write_atomically(path, |f| {
            writeln!(f, "{}", serde_json::to_string(header)?)?;
            lines.iter().try_for_each(|line| writeln!(f, "{}", serde_json::to_string(line)?))
        })?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        Ok(Journal { lines, file: Some((path.into(), file)) })
    }

    /// The first result of an earlier run that `is` wanted, which is then no longer here.
    pub fn take(&mut self, is: impl FnMut(&L) -> bool) -> Option<L> {
        let at = self.lines.iter().position(is)?;
        Some(self.lines.remove(at))
    }

    /// Keeps a result.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, line: &L) -> Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let written = serde_json::to_string(line).map_err(std::io::Error::from);
        written
            .and_then(|text| file.write_all(format!("{text}\n").as_bytes()))
            .map_err(|e| Error::io(path.as_path(), e))
    }
}

fn parsed<H, L>(text: &str, header: &H) -> Result<Vec<L>>
where
    H: DeserializeOwned + PartialEq,
    L: DeserializeOwned,
{
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let mut lines = whole.lines();
    match lines.next().map(serde_json::from_str::<H>) {
        None if text.is_empty() => return Ok(vec![]),
        Some(Ok(found)) if found == *header => {}
        Some(Ok(_)) => {
            return Err(invalid!("holds results of another model, other data or options: give another file"));
        }
        _ => return Err(invalid!("holds no results of this kind: give another file")),
    }
    let parse =
        |(i, line): (usize, &str)| serde_json::from_str(line).map_err(|e| invalid!("line {}: {e}", i + 2));
    lines.enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Header {
        of: u32,
        whole: bool,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Line {
        layer: String,
    }

    #[test]
    fn only_files_of_the_same_results_are_read() {
        let header = Header { of: 7, whole: false };
        let head = "{\"of\":7,\"whole\":false}\n";
        let line = "{\"layer\":\"a\"}\n";
        for (text, wanted) in [
            (String::new(), Ok(0)),
            (head.into(), Ok(0)),
            (format!("{head}{line}"), Ok(1)),
            (format!("{head}{line}{line}"), Ok(2)),
            (format!("{head}{line}{{\"lay"), Ok(1)),
            (format!("{head}{{}}\n{line}"), Err("line 2")),
            (head.replace('7', "8"), Err("another model")),
            (head.replace("false", "true"), Err("another model")),
            ("# notes\n".into(), Err("no results")),
            ("notes".into(), Err("no results")),
        ] {
            match (parsed::<Header, Line>(&text, &header), wanted) {
                (Ok(lines), Ok(n)) => assert_eq!(lines.len(), n, "{text}"),
                (Err(e), Err(says)) => assert!(e.to_string().contains(says), "{text}: {e}"),
                (found, wanted) => panic!("{text}: {:?} is not {wanted:?}", found.map(|l| l.len())),
            }
        }
    }

    #[test]
    fn what_was_kept_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let header = Header { of: 1, whole: true };
        let line = |layer: &str| Line { layer: layer.into() };
        let mut journal = Journal::open(Some(&path), &header).unwrap();
        assert!(journal.take(|_| true).is_none());
        journal.add(&line("a")).unwrap();
        journal.add(&line("b")).unwrap();
        let mut again: Journal<Line> = Journal::open(Some(&path), &header).unwrap();
        assert_eq!(again.take(|l| l.layer == "b"), Some(line("b")));
        assert_eq!(again.take(|l| l.layer == "b"), None);
        assert_eq!(again.take(|_| true), Some(line("a")));
    }
}
