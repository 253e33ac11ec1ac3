//! What compiling says of an instruction set that does not exist.

use std::process::Command;

use lowbit::graph::Builder;
use lowbit::op::Fact;
use lowbit::session::Session;
use lowbit::{DType, Result};

const VARIABLE: &str = "LOWBIT_ISA";

fn compile() -> Result<Session> {
    let mut b = Builder::default();
    let x = b.input("x", Fact::new(DType::F32, [1]));
    Session::compile(&b.finish([("y".to_string(), x)])?)
}

/// Runs itself again in an environment that names a wrong instruction set.
#[test]
fn an_unknown_instruction_set_is_an_error() {
    if std::env::var(VARIABLE).is_ok_and(|isa| isa == "nonsense") {
        let error = compile().expect_err("there is no such instruction set").to_string();
        assert!(error.contains("LOWBIT_ISA=nonsense") && error.contains("scalar"), "{error}");
        return;
    }
    compile().unwrap();
    let this = std::env::current_exe().unwrap();
    let again = Command::new(this)
        .arg("an_unknown_instruction_set_is_an_error")
        .env(VARIABLE, "nonsense")
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
}
