//! The environment variable that forces a table, as a process sees it.

use std::env;
use std::process::Command;

use lowbit_kernels::{ISA_VARIABLE, Kernels};

/// Run by the other test, in a process of its own.
#[test]
#[ignore = "prints the table of the environment it is run in"]
fn print_the_table() {
    println!("selected {:?}", Kernels::select());
    println!("best {}", Kernels::best().name());
}

/// Whether [`print_the_table`] passed with this environment, and its output.
fn table_with(value: Option<&str>) -> (bool, String) {
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "print_the_table", "--nocapture"]);
    match value {
        Some(value) => child.env(ISA_VARIABLE, value),
        None => child.env_remove(ISA_VARIABLE),
    };
    let output = child.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn the_variable_forces_a_table() {
    let first = Kernels::available().next().unwrap().name();
    let named = Kernels::available().map(|table| (Some(table.name()), table.name()));
    for (value, want) in named.chain([(None, first)]) {
        let (passed, text) = table_with(value);
        assert!(passed && text.contains(&format!("best {want}")), "{value:?}: {text}");
    }
}

#[test]
fn a_wrong_name_is_an_error_that_lists_the_right_ones() {
    for value in ["", "sse9"] {
        let (passed, text) = table_with(Some(value));
        assert!(!passed && text.contains("selected Err("), "{value:?}: {text}");
        let message = text.split("panicked").nth(1).unwrap_or_else(|| panic!("{value:?}: {text}"));
        for table in Kernels::available() {
            assert!(message.contains(table.name()), "{value:?}: {text}");
        }
    }
}
