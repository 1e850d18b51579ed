//! A leader with a damaged slot, whom nobody can heal: what else it holds can be had.

use crate::harness::{Node, run, stderr, stdout};

/// Both once ended at the slot; an export is what somebody wants most then.
#[test]
fn an_export_leaves_a_damaged_slot_out_and_a_tail_says_where_it_ends() {
    let directory = tempfile::tempdir().expect("temp dir");
    let data = directory.path().join("a");
    let mut node = Node::leader(&data, &["--shard-count", "1", "--durability", "none"]);
    let mut client = node.client();
    for key in 0..50 {
        assert_eq!(client.call(&["SET", &format!("key-{key}"), "precious"]).text(), "OK");
    }
    drop(client);
    assert!(node.terminate().0.success());
    let shard = data.join("shards").join("0000.slots");
    let mut bytes = std::fs::read(&shard).expect("a shard file");
    // Not the redo record, which comes first, and not the last write, which that would heal.
    let values = bytes.windows(8).enumerate().filter(|(_, window)| *window == b"precious");
    let in_a_value = values.map(|(position, _)| position).nth(20).expect("a record");
    bytes[in_a_value] ^= 1;
    std::fs::write(&shard, &bytes).expect("written");
    node.restart();

    let (address, file) = (node.ports.listen.to_string(), directory.path().join("rows.csv"));
    let export = run(&["export", &address, &file.to_string_lossy()]);
    assert_eq!(export.status.code(), Some(1), "{}", stderr(&export));
    assert!(stderr(&export).contains("shard 0: slot 19 is damaged, and left out"), "{}", stderr(&export));
    let figures = stdout(&export);
    assert!(figures.starts_with("exported 49 rows") && figures.contains("damaged slots"), "{figures}");
    let rows = std::fs::read_to_string(&file).expect("the file is there all the same");
    assert_eq!(rows.lines().filter(|line| line.contains(",precious")).count(), 49, "{rows}");

    let tail = run(&["tail", &address, "--from", "start"]);
    assert_eq!(tail.status.code(), Some(1));
    for words in ["shard 0: slot 19: ", "damaged", "until that slot is written again, or healed"] {
        assert!(stderr(&tail).contains(words), "{words:?} is not in: {}", stderr(&tail));
    }
    // Written again it is whole.
    let lost = (0..50).map(|key| format!("key-{key}")).find(|key| !rows.contains(&format!("{key},")));
    assert_eq!(node.client().call(&["SET", &lost.expect("one is missing"), "precious"]).text(), "OK");
    let export = run(&["export", &address, &file.to_string_lossy()]);
    assert!(
        export.status.success() && stdout(&export).starts_with("exported 50 rows"),
        "{}",
        stderr(&export)
    );
}
