//! Results that are kept as they come, so that an interrupted measurement goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Block, Scores};
use crate::data::write_atomically;
use crate::error::{Error, Result, invalid};

/// What a file of results may hold, in bytes.
const MOST: u64 = 64 << 20;

/// The first line of a file: what its results are of.
#[derive(PartialEq, Serialize, Deserialize)]
struct Header {
    /// A checksum of model, ranges and data.
    sensitivity: u32,
    all_but_one: bool,
}

/// Another line: a result.
#[derive(Serialize, Deserialize)]
pub(super) struct Line {
    /// The layer; none for everything.
    pub layer: Option<String>,
    pub nodes: Vec<String>,
    pub scores: Scores,
}

/// The results so far, and the file that holds them, if they are kept.
pub(super) struct State {
    lines: Vec<Line>,
    file: Option<(PathBuf, File)>,
}

impl State {
    /// The results in the file at `path`, which is made if it is not there. What an
    /// interrupted write has left at its end is dropped.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is of other results.
    pub fn open(path: Option<&Path>, key: u32, all_but_one: bool) -> Result<State> {
        let Some(path) = path else { return Ok(State { lines: vec![], file: None }) };
        let io = |e| Error::io(path, e);
        let mut text = String::new();
        if path.exists() {
            File::open(path).and_then(|f| f.take(MOST).read_to_string(&mut text)).map_err(io)?;
        }
        let header = Header { sensitivity: key, all_but_one };
        let lines = parsed(&text, &header).map_err(|e| e.at(path.display().to_string()))?;
        write_atomically(path, |f| {
            writeln!(f, "{}", serde_json::to_string(&header)?)?;
            lines.iter().try_for_each(|line| writeln!(f, "{}", serde_json::to_string(line)?))
        })?;
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        Ok(State { lines, file: Some((path.into(), file)) })
    }

    /// The result of a block, if there is one.
    pub fn take(&mut self, block: &Block) -> Option<Scores> {
        let is = |line: &Line| line.layer == block.name && line.nodes == block.nodes;
        let at = self.lines.iter().position(is)?;
        Some(self.lines.swap_remove(at).scores)
    }

    /// Keeps a result.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, line: &Line) -> Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let written = serde_json::to_string(line).map_err(std::io::Error::from);
        written
            .and_then(|text| file.write_all(format!("{text}\n").as_bytes()))
            .map_err(|e| Error::io(path.as_path(), e))
    }
}

fn parsed(text: &str, header: &Header) -> Result<Vec<Line>> {
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    let mut lines = whole.lines();
    match lines.next().map(serde_json::from_str::<Header>) {
        None if text.is_empty() => return Ok(vec![]),
        Some(Ok(found)) if found == *header => {}
        Some(Ok(_)) => {
            return Err(invalid!("holds results of another model, other data or options: give another file"));
        }
        _ => return Err(invalid!("holds no results of sensitivity: give another file")),
    }
    let parse =
        |(i, line): (usize, &str)| serde_json::from_str(line).map_err(|e| invalid!("line {}: {e}", i + 2));
    lines.enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_same_measurement_are_read() {
        let header = Header { sensitivity: 7, all_but_one: false };
        let scores = "\"scores\":{\"sqnr_db\":null,\"mse\":0.5,\"kl\":null,\"agreement\":1,\"top1\":null}";
        let head = "{\"sensitivity\":7,\"all_but_one\":false}\n";
        let line = format!("{{\"layer\":\"a\",\"nodes\":[\"a\"],{scores}}}\n");
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
            match (parsed(&text, &header), wanted) {
                (Ok(lines), Ok(n)) => assert_eq!(lines.len(), n, "{text}"),
                (Err(e), Err(says)) => assert!(e.to_string().contains(says), "{text}: {e}"),
                (found, wanted) => panic!("{text}: {:?} is not {wanted:?}", found.map(|l| l.len())),
            }
        }
    }
}
