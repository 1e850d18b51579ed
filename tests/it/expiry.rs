//! Expiry across processes: the leader alone deletes, followers see it as a change, readers never see
//! an expired record.

use crate::harness::{Node, PATIENCE, Reply, wait_in_sync, wait_until};

#[test]
fn expired_records_are_absent_everywhere_and_then_deleted_by_the_leader() {
    let directory = tempfile::tempdir().expect("temp dir");
    let leader = Node::leader(&directory.path().join("leader"), &["--shard-count", "2"]);
    let follower = Node::follower(&directory.path().join("follower"), &leader, &[]);
    let mut client = leader.client();
    for number in 0..100 {
        let px = if number % 2 == 0 { "600" } else { "600000" };
        assert_eq!(client.call(&["SET", &format!("key:{number}"), "value", "PX", px]).text(), "OK");
    }
    wait_in_sync(&leader, &follower);
    let mut reader = follower.client();
    assert_eq!(reader.call(&["GET", "key:1"]).text(), "value");
    wait_until("the sweep has deleted what expired", PATIENCE, || {
        client.call(&["DBSIZE"]) == Reply::Integer(50)
    });
    assert_eq!(client.call(&["GET", "key:0"]), Reply::Nil);
    assert_eq!(reader.call(&["GET", "key:0"]), Reply::Nil);
    wait_until("the deletions have reached the follower", PATIENCE, || {
        reader.call(&["DBSIZE"]) == Reply::Integer(50)
    });
    assert_eq!(reader.call(&["GET", "key:1"]).text(), "value");
}
