//! Makes two modules out of the product's `src/ring.rs`: the file as it is, but with loom's atomics in place of
//! the standard ones, and the same without its fences, which shows that the models can fail.

use std::path::Path;
use std::{env, fs};

const RING: &str = "../../src/ring.rs";
const FENCE: &str = "fence(Ordering::SeqCst);";

fn main() {
    println!("cargo:rerun-if-changed={RING}");
    let source = fs::read_to_string(RING).unwrap_or_else(|error| panic!("cannot read {RING}: {error}"));
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    // An included file may not open with inner comments.
    let code: Vec<&str> = code.lines().filter(|line| !line.starts_with("//!")).collect();
    let ring = replace(&code.join("\n"), "std::sync::", "loom::sync::");
    assert!(!ring.contains("std::thread"), "{RING} uses threads, which are not modelled");

    let folder = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let write = |name: &str, text: &str| {
        fs::write(Path::new(&folder).join(name), text)
            .unwrap_or_else(|error| panic!("cannot write {name}: {error}"));
    };
    write("ring.rs", &ring);
    write("ring_without_fences.rs", &replace(&ring, FENCE, ""));
}

fn replace(text: &str, from: &str, to: &str) -> String {
    // Nothing replaced: the file has changed, and the models would test something else than they say.
    assert!(text.contains(from), "{RING} no longer holds {from}");
    text.replace(from, to)
}
