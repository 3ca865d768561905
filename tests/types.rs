//! Verifies that docs/types.ts, and the TypeScript in the documents that uses it, compile. That the
//! types are those of the service is tested where they are made, in src/protocol/typescript.rs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/document.rs"]
mod document;

use std::fs;
use std::path::Path;
use std::process::Command;

use document::{assert_success, project, tool};

/// The documents whose examples are compiled.
const DOCUMENTS: [&str; 2] = ["docs/PROTOCOL.md", "docs/MODELS_SYNC.md"];

/// The TypeScript blocks of a document, each a module.
fn examples(document: &str) -> Vec<String> {
    let text = fs::read_to_string(project(document)).unwrap();
    let blocks = text.split("\n```ts\n").skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap().to_owned() + "\n").collect()
}

fn compile(directory: &Path) {
    let config = r#"{"compilerOptions": {
        "strict": true, "noEmit": true, "target": "es2022", "module": "esnext",
        "moduleResolution": "bundler", "exactOptionalPropertyTypes": true, "types": [],
        "noUnusedLocals": true, "lib": ["es2022", "dom"]
    }}"#;
    fs::write(directory.join("tsconfig.json"), config).unwrap();
    let output = Command::new(tool("node_modules/.bin/tsc"))
        .arg("--project")
        .arg(directory)
        .output()
        .unwrap();
    assert_success("tsc", &output);
}

#[test]
fn the_types_and_their_examples_compile() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("types");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    fs::copy(project("docs/types.ts"), directory.join("types.ts")).unwrap();
    for document in DOCUMENTS {
        let examples = examples(document);
        assert!(!examples.is_empty(), "{document} has no example");
        let name = Path::new(document).file_stem().unwrap().to_str().unwrap();
        for (number, example) in examples.iter().enumerate() {
            fs::write(directory.join(format!("{name}-{number}.ts")), example).unwrap();
        }
    }
    compile(&directory);
}
