//! Reads the machine-readable documents under docs/, with the tools that tests/run installs.

#![allow(clippy::unwrap_used, dead_code, reason = "each test file uses a part; a test panics")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A path in the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Something under target/tools.
pub fn tool(path: &str) -> PathBuf {
    let path = project("target/tools").join(path);
    assert!(path.exists(), "{} is missing: tests/run installs it", path.display());
    path
}

/// A program of the Python tools, without anything of the user's settings, proxies among them.
pub fn python_tool(name: &str) -> Command {
    let mut command = Command::new(tool(&format!("venv/bin/{name}")));
    command.env_clear().env("PATH", "/usr/bin:/bin").current_dir(std::env::temp_dir());
    command
}

/// Panics with what a program said, unless it succeeded.
pub fn assert_success(what: &str, output: &Output) {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{what}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// A YAML document as JSON.
pub fn yaml(path: &str) -> Value {
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let output = python_tool("python3").args(["-c", script]).arg(project(path)).output().unwrap();
    assert_success(path, &output);
    serde_json::from_slice(&output.stdout).unwrap()
}
