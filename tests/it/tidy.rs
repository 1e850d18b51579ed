//! Style as a test: floor order, heads, lengths, names, tables. Each check is a function from text to
//! complaints, and is itself tried on a planted violation.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files that may hold `unsafe`: slot memory, and the processor's checksum instruction.
const UNSAFE_FILES: &[&str] = &["src/region.rs", "src/checksum.rs"];
const FILE_LINES_MAX: usize = 700;
const README_LINES_MAX: usize = 149;
const DOCUMENT_COLUMNS_MAX: usize = 160;

/// Modules below `src` with their floors: a module imports lower floors only. Read from the rows
/// `| 6 | `node` | ... |` of the map, so that there is one table.
fn floors() -> impl Iterator<Item = (&'static str, u8)> {
    let map = include_str!("../../src/ARCHITECTURE.md");
    let section = map.split("## Floors").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap_or("");
    section
        .lines()
        .filter_map(|row| {
            let mut cells = row.strip_prefix("| ")?.split(" | ");
            let floor: u8 = cells.next()?.parse().ok()?;
            Some(cells.next()?.split(", ").map(move |module| (module.trim_matches('`'), floor)))
        })
        .flatten()
}

fn floor(module: &str) -> Option<u8> {
    floors().find(|(known, _)| *known == module).map(|(_, floor)| floor)
}

/// Modules of this crate that a file names in `crate::` paths, also in braces.
fn imports(text: &str) -> BTreeSet<String> {
    let word =
        |rest: &str| -> String { rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).fold(
        String::new(),
        |mut code, line| {
            code.push_str(line);
            code.push('\n');
            code
        },
    );
    let mut found = BTreeSet::new();
    for (position, _) in code.match_indices("crate::") {
        // `$crate::` and `mycrate::` are none of ours.
        if code[..position].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[position + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0_u32;
            let mut start_of_item = true;
            for (offset, character) in list.char_indices() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start_of_item = true,
                    c if start_of_item && depth == 0 && !c.is_whitespace() => {
                        found.insert(word(&list[offset..]));
                        start_of_item = false;
                    }
                    _ => {}
                }
            }
        } else {
            found.insert(word(rest));
        }
    }
    found
}

fn floor_complaints(file: &str, text: &str) -> Vec<String> {
    let Some(path) = file.strip_prefix("src/") else { return Vec::new() };
    let module = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
    if matches!(module, "lib" | "main") {
        return Vec::new();
    }
    let Some(own) = floor(module) else {
        return vec![format!("{file}: module `{module}` has no floor; give it one in src/ARCHITECTURE.md")];
    };
    let bad = |other: &String| match floor(other) {
        _ if other == module => None,
        Some(floor) if floor < own => None,
        Some(floor) => Some(format!("{file} (floor {own}) imports `{other}` (floor {floor})")),
        None => Some(format!("{file} imports `crate::{other}`, which is no module with a floor")),
    };
    imports(text).iter().filter_map(bad).collect()
}

/// A module's first line names its floor: whoever opens the file sees what it may use.
fn floor_head_complaint(file: &str, text: &str) -> Option<String> {
    let path = file.strip_prefix("src/")?;
    let module = path.strip_suffix("/mod.rs").or(path.strip_suffix(".rs"))?;
    let wanted = format!("//! Floor {}: ", floor(module)?);
    (!text.starts_with(&wanted)).then(|| format!("{file} does not begin with `{wanted}`"))
}

fn head_complaint(file: &str, text: &str) -> Option<String> {
    let first = text.lines().find(|line| !line.starts_with("#!["));
    (!first.is_some_and(|line| line.starts_with("//!"))).then(|| format!("{file} has no //! head"))
}

fn length_complaint(file: &str, text: &str, lines_max: usize) -> Option<String> {
    let lines = text.lines().count();
    (lines > lines_max).then(|| format!("{file} has {lines} lines, wanted at most {lines_max}"))
}

/// Prose that no window shows whole, and links to files that are not there.
fn document_complaints(file: &str, text: &str) -> Vec<String> {
    let wide = |line: &&str| !line.starts_with('|') && line.chars().count() > DOCUMENT_COLUMNS_MAX;
    let wide = text.lines().filter(wide).map(|line| format!("{file}: too wide: {line}"));
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let lost = targets.filter(|target| target.ends_with(".md") && !folder.with_file_name(target).exists());
    wide.chain(lost.map(|target| format!("{file}: no {target}"))).collect()
}

fn word_complaints(file: &str, text: &str) -> Vec<String> {
    // In two parts, so that this file passes.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("todo", "!(")];
    let found = |word: &&&str| text.contains(**word);
    words.iter().filter(found).map(|word| format!("{file} holds {word}")).collect()
}

fn unsafe_complaint(file: &str, text: &str) -> Option<String> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or(line));
    let holds = code.into_iter().any(|line| line.contains("unsafe {") || line.contains("unsafe impl"));
    (holds && file.starts_with("src/") && !UNSAFE_FILES.contains(&file))
        .then(|| format!("{file} holds unsafe code; it belongs to {UNSAFE_FILES:?}"))
}

/// Names in the table of `src/metrics.rs`: `= Gauge "name", ...`.
fn metric_complaints(text: &str) -> Vec<String> {
    let kinds = ["= Gauge \"", "= Counter \"", "= Histogram \""];
    let name = |line: &str| {
        kinds.iter().find_map(|kind| line.split(kind).nth(1)?.split('"').next().map(ToOwned::to_owned))
    };
    let names: Vec<String> = text.lines().filter_map(name).collect();
    let mut seen = BTreeSet::new();
    let mut complaints: Vec<String> = names
        .iter()
        .filter(|name| !seen.insert(*name))
        .map(|name| format!("metric {name} is there twice"))
        .collect();
    if names.is_empty() {
        complaints.push("no metric was found: this check reads the table wrongly".to_owned());
    }
    complaints
}

/// Every variant of `enum Kind` in `src/wire/frame.rs` needs its row in the table of `src/wire/mod.rs`.
fn message_complaints(frame: &str, wire: &str) -> Vec<String> {
    let body = frame.split("pub enum Kind {").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap_or("");
    let variants: Vec<&str> = body
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter_map(|line| line.split([' ', ',', '=']).next())
        .collect();
    let missing = |kind: &&&str| !wire.lines().any(|line| line.starts_with(&format!("//! | {kind} ")));
    let mut complaints: Vec<String> = variants
        .iter()
        .filter(missing)
        .map(|kind| format!("message {kind} is not in the table of src/wire/mod.rs"))
        .collect();
    if variants.is_empty() {
        complaints.push("no message was found: this check reads src/wire/frame.rs wrongly".to_owned());
    }
    complaints
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust files below a folder, by path from the root.
fn rust_files(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder of the repository").flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    paths.sort();
    let name = |path: &PathBuf| {
        path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/")
    };
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).expect("UTF-8"))).collect()
}

fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn modules_import_lower_floors_only() {
    assert_none(rust_files("src").iter().flat_map(|(file, text)| floor_complaints(file, text)).collect());
}

#[test]
fn the_map_and_the_modules_agree_on_floors() {
    let files = rust_files("src");
    assert_none(files.iter().filter_map(|(file, text)| floor_head_complaint(file, text)).collect());
    let is_there = |module: &str| {
        [format!("src/{module}.rs"), format!("src/{module}/mod.rs")]
            .iter()
            .any(|path| root().join(path).exists())
    };
    let missing = floors().filter(|(module, _)| !is_there(module));
    assert_none(missing.map(|(module, _)| format!("the map has `{module}`, src has not")).collect());
    let floors_found: BTreeSet<u8> = floors().map(|(_, floor)| floor).collect();
    assert_eq!(floors_found, (0..=6).collect());
}

#[test]
fn every_file_has_a_head_and_a_bounded_length_and_nothing_left_to_do() {
    let mut complaints = Vec::new();
    for folder in ["src", "tests"] {
        for (file, text) in rust_files(folder) {
            complaints.extend(head_complaint(&file, &text));
            complaints.extend(length_complaint(&file, &text, FILE_LINES_MAX));
            complaints.extend(word_complaints(&file, &text));
            complaints.extend(unsafe_complaint(&file, &text));
        }
    }
    assert_none(complaints);
}

#[test]
fn metric_names_are_unique() {
    assert_none(metric_complaints(&read("src/metrics.rs")));
}

#[test]
fn every_message_is_in_the_table() {
    assert_none(message_complaints(&read("src/wire/frame.rs"), &read("src/wire/mod.rs")));
}

#[test]
fn the_readme_is_short() {
    assert_none(length_complaint("README.md", &read("README.md"), README_LINES_MAX).into_iter().collect());
}

#[test]
fn documents_can_be_read_and_their_links_lead_somewhere() {
    for file in ["README.md", "src/ARCHITECTURE.md", "src/OPERATIONS.md", "src/REDIS.md"] {
        assert_none(document_complaints(file, &read(file)));
    }
}

#[test]
fn planted_violations_are_found() {
    assert_eq!(floor_complaints("src/slot/image.rs", "use crate::store::Store;").len(), 1);
    assert_eq!(floor_complaints("src/leader/link.rs", "use crate::{slot::Seq, follower::Link};").len(), 1);
    assert_eq!(floor_complaints("src/store/mod.rs", "fn f() -> crate::http::Server {}").len(), 1);
    assert_eq!(floor_complaints("src/novel.rs", "").len(), 1);
    assert_eq!(floor_complaints("src/store/mod.rs", "use crate::Geometry;").len(), 1);
    assert!(
        floor_complaints("src/http/mod.rs", "use crate::{slot::{Seq, Key}, status::View};\n// crate::node")
            .is_empty()
    );
    assert!(floor_head_complaint("src/slot/mod.rs", "//! Floor 2: what a slot is.").is_some());
    assert!(floor_head_complaint("src/stop.rs", "//! One stop signal.").is_some());
    assert!(floor_head_complaint("src/slot/image.rs", "//! Images.").is_none());
    let document = format!("{}\n[a](src/lost.md) [b](src/REDIS.md)", "x".repeat(161));
    assert_eq!(document_complaints("README.md", &document).len(), 2);
    assert!(head_complaint("a.rs", "use b;\n//! late").is_some());
    assert!(head_complaint("a.rs", "#![cfg(x)]\n//! in time").is_none());
    assert!(length_complaint("a.rs", &"x\n".repeat(701), FILE_LINES_MAX).is_some());
    assert_eq!(word_complaints("a.rs", &format!("// {}{} later", "TO", "DO")).len(), 1);
    assert!(unsafe_complaint("src/store/mod.rs", "x = unsafe { y };").is_some());
    assert!(unsafe_complaint("src/region.rs", "x = unsafe { y };").is_none());
    let table = "A = Gauge \"a\", \"x\";\nB = Counter \"a\", \"y\";";
    assert_eq!(metric_complaints(table), ["metric a is there twice"]);
    assert_eq!(metric_complaints("nothing").len(), 1);
    let frame = "pub enum Kind {\n    /// x\n    Hello = 1,\n    Novel = 2,\n}\n";
    assert_eq!(message_complaints(frame, "//! | Hello | x |").len(), 1);
}
