//! Verifies that what documents link to and comments name is in the repository, and that no module at the
//! top of the crate needs itself by way of others.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "support/document.rs"]
mod document;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use document::project;

/// Folders whose files documents and comments name.
const FOLDERS: [&str; 6] = ["src/", "docs/", "tests/", "benches/", "examples/", "client/"];

/// Every file below, but for what is built or fetched.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !path.is_dir() {
            files.push(path);
        } else if ![".git", "target", "node_modules", "__pycache__"].contains(&name) {
            files.extend(files_below(&path));
        }
    }
    files
}

/// The text files of the repository.
fn texts() -> impl Iterator<Item = (PathBuf, String)> {
    let files = files_below(&project(""));
    files.into_iter().filter_map(|path| Some((path.clone(), fs::read_to_string(&path).ok()?)))
}

/// The paths from the root that a text names, each with an extension; not those of a URL.
fn named_paths(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "/._-…*{}<>$".contains(c);
    text.split(|c| !is_part(c))
        .map(|word| word.trim_start_matches("../").trim_end_matches('.'))
        .filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)))
        .filter(|word| word.rsplit('/').next().is_some_and(|name| name.contains('.')))
        .filter(|word| !word.contains(['…', '*', '{', '<', '$']))
        .collect()
}

#[test]
fn every_path_that_is_named_exists() {
    let mut missing = Vec::new();
    for (file, text) in texts() {
        // The changelog tells what was.
        if file.ends_with("CHANGELOG.md") {
            continue;
        }
        let lost = named_paths(&text).into_iter().filter(|path| !project(path).exists());
        missing.extend(lost.map(|path| format!("{}: {path}", file.display())));
    }
    assert!(missing.is_empty(), "named, but not there: {missing:#?}");
}

#[test]
fn only_documents_of_the_repository_are_cited() {
    // In two parts, as it would find itself.
    let outside = ["DESI", "GN"].concat();
    let citing: Vec<_> =
        texts().filter(|(_, text)| text.contains(&outside)).map(|(path, _)| path).collect();
    assert!(citing.is_empty(), "{outside} is no document here: {citing:#?}");
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut dead = Vec::new();
    let is_document = |path: &Path| path.extension().is_some_and(|extension| extension == "md");
    for (document, text) in texts().filter(|(path, _)| is_document(path)) {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !leads_somewhere(&document, &text, link) {
                dead.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links: {dead:#?}");
}

fn leads_somewhere(document: &Path, text: &str, link: &str) -> bool {
    if link.contains("://") {
        return true;
    }
    let (file, section) = link.split_once('#').unwrap_or((link, ""));
    let target = document.parent().unwrap().join(file);
    let text = match file {
        "" => text.to_owned(),
        _ if section.is_empty() => return target.exists(),
        _ => fs::read_to_string(target).unwrap_or_default(),
    };
    text.lines().filter(|line| line.starts_with('#')).any(|heading| anchor(heading) == section)
}

/// The anchor that forges give a heading.
fn anchor(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

/// A source file of the crate without comments and without what stands behind `#[cfg(test)]`.
#[derive(Default)]
struct Source {
    code: String,
    /// Modules that stand in files of their own and only tests have.
    test_modules: Vec<String>,
}

impl Source {
    fn parse(text: &str) -> Self {
        let mut source = Self::default();
        let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        while let Some(line) = lines.next() {
            if line.trim() != "#[cfg(test)]" {
                source.code.extend([line, "\n"]);
                continue;
            }
            let item = lines.find(|line| !line.trim().starts_with('#')).unwrap();
            if let Some(module) = item.trim().strip_suffix(';') {
                source.test_modules.push(module.rsplit(' ').next().unwrap().to_owned());
            } else {
                let end = format!("{}}}", &item[..item.len() - item.trim_start().len()]);
                lines.find(|line| *line == end).unwrap();
            }
        }
        source
    }

    /// The modules at the top of the crate that it names.
    fn needs(&self) -> impl Iterator<Item = String> {
        assert!(
            !self.code.contains("crate::{"),
            "this test reads one `use crate::…` for each module"
        );
        self.code.split("crate::").skip(1).map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap().to_owned()
        })
    }
}

/// What each module at the top of the crate needs of the others.
fn module_graph() -> BTreeMap<String, BTreeSet<String>> {
    let root = project("src");
    let sources: Vec<_> = files_below(&root)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let source = Source::parse(&fs::read_to_string(&path).unwrap());
            (path.strip_prefix(&root).unwrap().with_extension(""), source)
        })
        .collect();
    let test_modules: BTreeSet<PathBuf> = sources
        .iter()
        .flat_map(|(path, source)| source.test_modules.iter().map(|module| path.join(module)))
        .collect();
    let mut graph = BTreeMap::<String, BTreeSet<String>>::new();
    for (path, source) in sources {
        let module = path.iter().next().unwrap().to_str().unwrap();
        // `lib` and `main` stand above the modules.
        if !test_modules.contains(&path) && !["lib", "main"].contains(&module) {
            let others = source.needs().filter(|needed| needed != module);
            graph.entry(module.to_owned()).or_default().extend(others);
        }
    }
    graph
}

#[test]
fn no_module_at_the_top_needs_itself_by_way_of_others() {
    let mut graph = module_graph();
    assert!(graph.len() > 10 && graph["gate"].contains("http"), "read wrongly: {graph:#?}");
    // Whoever needs nobody that is left is in no cycle.
    while let Some(free) = graph
        .iter()
        .find(|(_, needs)| !needs.iter().any(|needed| graph.contains_key(needed)))
        .map(|(module, _)| module.clone())
    {
        graph.remove(&free);
    }
    assert!(graph.is_empty(), "a cycle is among these: {graph:#?}");
}
