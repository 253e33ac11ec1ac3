//! What a command prints.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

/// A command's result: for people and for programs.
pub struct Output {
    text: String,
    json: serde_json::Value,
    /// Whether the command fails although it has a result to print.
    fails: bool,
}

impl Output {
    /// A result as text, and as what `value` serializes to.
    pub fn new(text: String, value: &impl Serialize) -> anyhow::Result<Output> {
        Ok(Output { text, json: serde_json::to_value(value)?, fails: false })
    }

    /// The same of a command that fails: what was asked to hold does not.
    pub fn failing(self) -> Output {
        Output { fails: true, ..self }
    }

    /// Whether the command fails.
    pub fn fails(&self) -> bool {
        self.fails
    }

    /// Prints it. A reader that goes away early (`| head`) is no error.
    pub fn print(&self, as_json: bool) -> anyhow::Result<()> {
        let mut text = if as_json { serde_json::to_string_pretty(&self.json)? } else { self.text.clone() };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e.into()),
            _ => Ok(()),
        }
    }
}

/// Something that the user should know, on stderr.
pub fn warn(message: &str) {
    eprintln!("warning: {}", one_line(message));
}

/// A message on one line: without the excerpt of the file that errors of a
/// TOML file have, whose line and column the message names.
pub fn one_line(message: &str) -> String {
    let is_excerpt =
        |line: &&str| line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|');
    let lines: Vec<&str> =
        message.lines().filter(|l| !is_excerpt(l)).map(str::trim).filter(|l| !l.is_empty()).collect();
    lines.join(": ")
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn messages_have_one_line() {
        for (message, line) in [
            ("a: b", "a: b"),
            (
                "q.toml: TOML parse error at line 1, column 1\n  |\n1 | presets = 3\n  | ^^^^^^^\nunknown field `presets`\n",
                "q.toml: TOML parse error at line 1, column 1: unknown field `presets`",
            ),
        ] {
            assert_eq!(one_line(message), line);
        }
    }
}
