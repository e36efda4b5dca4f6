//! The commonest mistakes, and what the compiler says to them.
//!
//! The words are the compiler's, which change: they are compared on the version that they were written with only.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::process::Command;

const WRITTEN_WITH: &str = "rustc 1.95.";

#[test]
fn mistakes_are_explained() {
    let version = Command::new("rustc").arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    if !version.starts_with(WRITTEN_WITH) {
        println!("not compared: {version} is not {WRITTEN_WITH}x");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/ui/mistakes/*.rs");
}
