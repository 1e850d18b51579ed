//! Replies that Redis cannot be asked for: sizes, roles, INFO, WAIT.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use slotstream::links::{LinkCell, Phase};
use slotstream::resp::{Options, Role};
use slotstream::{Geometry, ShardIndex};
use uuid::Uuid;

use crate::resp_support::{TestServer, encode, wait_until};

const SMALL: Geometry =
    Geometry { shard_count: 3, key_size_max: 32, value_size_max: 100, shard_prefix_bits: 0 };

/// A follower's link in phase stream.
fn link(server: &TestServer, follower: u128, shard: u16, applied: u64) -> Arc<LinkCell> {
    let cell = LinkCell::new(Uuid::from_u128(follower), ([127, 0, 0, 1], 4000).into(), 6380, shard);
    cell.set_phase(Phase::Stream);
    cell.applied_seq.store(applied, Ordering::Relaxed);
    server.context.links.add(Arc::clone(&cell));
    cell
}

#[test]
fn keys_and_values_too_large_for_a_slot_are_refused() {
    let server = TestServer::start_with(SMALL, Options::default());
    let mut client = server.connect();
    let (key, value) = ("k".repeat(40), "v".repeat(101));
    let key_error = "-ERR key is 40 bytes, this store holds keys of at most 32\r\n";
    let value_error = "-ERR value is 101 bytes, this store holds values of at most 100\r\n";
    assert_eq!(client.ask(&format!("set {key} v")), key_error);
    assert_eq!(client.ask(&format!("set k {value}")), value_error);
    assert_eq!(client.ask(&format!("set k {value} EX 100")), value_error);
    assert_eq!(client.ask(&format!("mset a 1 b {value}")), value_error);
    assert_eq!(client.ask(&format!("set {key} v NX GET")), key_error);
    assert_eq!(
        client.call(&["set", "", "v"]),
        b"-ERR key is 0 bytes, this store holds keys of at least 1\r\n"
    );
    assert_eq!(client.ask(&format!("append k {}", "v".repeat(100))), ":100\r\n");
    assert_eq!(client.ask("append k x"), value_error);
    assert_eq!(client.ask(&format!("getset k {value}")), value_error);
    // Reading or deleting a key that no slot can hold finds nothing.
    assert_eq!(client.ask(&format!("get {key}")), "$-1\r\n");
    assert_eq!(client.ask(&format!("del {key} k")), ":1\r\n");
    assert_eq!(client.ask(&format!("exists {key} a")), ":0\r\n");
    assert_eq!(client.ask("dbsize"), ":0\r\n");
}

#[test]
fn expired_records_are_absent() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.ask("set k v px 30"), "+OK\r\n");
    assert_eq!(client.ask("set other v"), "+OK\r\n");
    wait_until("the key expiring", || client.ask("get k") == "$-1\r\n");
    assert_eq!(client.ask("exists k"), ":0\r\n");
    assert_eq!(client.ask("ttl k"), ":-2\r\n");
    assert_eq!(client.ask("set k w xx"), "$-1\r\n");
    assert_eq!(client.ask("append k new"), ":3\r\n");
    assert_eq!(client.ask("pttl k"), ":-1\r\n");
}

#[test]
fn hello_answers_a_map() {
    let server = TestServer::start();
    let mut client = server.connect();
    let id = client.ask("client id").trim_start_matches(':').trim().to_owned();
    let tail = format!(
        "$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.4\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:{id}\r\n\
         $4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
    );
    assert_eq!(client.ask("hello 3 auth default any setname me"), format!("%7\r\n{tail}"));
    assert_eq!(client.ask("client getname"), "$2\r\nme\r\n");
    assert_eq!(client.ask("get none"), "_\r\n");
    assert_eq!(client.ask("config get databases"), "%1\r\n$9\r\ndatabases\r\n$1\r\n1\r\n");
    assert_eq!(client.ask("hello 2"), format!("*14\r\n{}", tail.replace(":3", ":2")));
    assert_eq!(client.ask("get none"), "$-1\r\n");
    assert_eq!(
        client.ask("hello 2 auth someone x"),
        "-WRONGPASS invalid username-password pair or user is disabled.\r\n"
    );
    assert_eq!(client.ask("reset"), "+RESET\r\n");
    assert_eq!(client.ask("client getname"), "$-1\r\n");
    client.send(b"hello 3 auth default x\r\n");
    assert!(client.reply().starts_with(b"%7\r\n"), "inline, as fred sends it");
}

#[test]
fn info_has_the_fields_that_clients_look_for() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.ask("set k v ex 100"), "+OK\r\n");
    assert_eq!(client.ask("get k"), "$1\r\nv\r\n");
    assert_eq!(client.ask("get none"), "$-1\r\n");
    link(&server, 7, 0, 3);
    link(&server, 7, 1, 4);
    // A backup takes shards, too, and serves nobody.
    let backup = LinkCell::new(Uuid::from_u128(8), ([127, 0, 0, 1], 4001).into(), 0, 0);
    backup.set_phase(Phase::Scan);
    server.context.links.add(backup);
    let info = client.ask("info");
    let fields = [
        "redis_version:7.2.4",
        "redis_mode:standalone",
        "server_name:slotstream",
        "slotstream_version:",
        "run_id:",
        "uptime_in_seconds:",
        "connected_clients:1",
        "used_memory:",
        "loading:0",
        "total_connections_received:1",
        "total_commands_processed:4",
        "instantaneous_ops_per_sec:",
        "keyspace_hits:1",
        "keyspace_misses:1",
        "sync_full:0",
        "sync_partial_ok:0",
        "sync_partial_err:0",
        "role:master",
        "connected_slaves:1",
        "slave0:ip=127.0.0.1,port=6380,state=online,offset=7,lag=0",
        "master_repl_offset:1",
        "db0:keys=1,expires=1,avg_ttl=0",
        "used_cpu_sys:",
    ];
    for field in fields {
        assert!(info.contains(&format!("\r\n{field}")), "{field} in {info}");
    }
    let port = format!("tcp_port:{}\r\n", server.port());
    assert!(info.contains(&port));
    // lettuce drops a replica whose line holds any other character.
    let line = info.lines().find(|line| line.starts_with("slave0")).unwrap();
    let allowed = |c: char| c.is_ascii_alphanumeric() || ",=.:-".contains(c);
    assert!(line.trim_end().chars().all(allowed), "{line}");
    let section = client.ask("info replication");
    assert!(section.contains("# Replication\r\n") && !section.contains("# Server"), "{section}");
    let two = client.ask("info server keyspace");
    assert!(two.contains("# Server") && two.contains("# Keyspace") && !two.contains("# Clients"), "{two}");
    assert_eq!(
        client.ask("role"),
        "*3\r\n$6\r\nmaster\r\n:1\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n6380\r\n$1\r\n7\r\n"
    );
}

#[test]
fn a_follower_refuses_writes() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.ask("set k v"), "+OK\r\n");
    server.context.store.set_read_only(true);
    *server.context.node.role.write() = Role::Follower { leader: "127.0.0.1:7000".into(), resp_port: 0 };
    let refused = "-READONLY You can't write against a read only replica.\r\n";
    for write in
        ["set k w", "set k w ex 10", "del k", "incr n", "mset a 1", "expire k 10", "flushall", "getdel k"]
    {
        assert_eq!(client.ask(write), refused, "{write}");
    }
    assert_eq!(client.ask("get k"), "$1\r\nv\r\n");
    assert_eq!(
        client.ask("role"),
        "*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:7000\r\n$10\r\nconnecting\r\n:1\r\n"
    );
    assert!(
        client
            .ask("info replication")
            .contains("role:slave\r\nmaster_host:127.0.0.1\r\nmaster_port:7000\r\n")
    );
    assert!(client.ask("wait 0 0").starts_with("-ERR WAIT cannot be used with replica instances."));
    assert_eq!(client.ask("multi"), "+OK\r\n");
    assert_eq!(client.ask("set k w"), refused);
    assert_eq!(client.ask("exec"), "-EXECABORT Transaction discarded because of previous errors.\r\n");
}

#[test]
fn wait_counts_followers_that_have_the_connections_writes() {
    let server = TestServer::start_with(SMALL, Options::default());
    let store = &server.context.store;
    let (mut client, mut other) = (server.connect(), server.connect());
    assert_eq!(client.ask("wait 0 0"), ":0\r\n");
    let key =
        (0..).map(|n| format!("key{n}")).find(|key| store.shard_of(key.as_bytes()) == ShardIndex(1)).unwrap();
    let elsewhere =
        (0..).map(|n| format!("k{n}")).find(|key| store.shard_of(key.as_bytes()) == ShardIndex(2)).unwrap();
    // One follower of everything, one of the key's shard only, one of another shard.
    let all: Vec<_> = (0..3).map(|shard| link(&server, 1, shard, 0)).collect();
    let one = link(&server, 2, 1, 0);
    link(&server, 3, 0, 99);
    assert_eq!(client.ask("wait 3 100"), ":3\r\n", "nothing written, nothing to wait for");
    assert_eq!(client.ask(&format!("set {key} v")), "+OK\r\n");
    assert_eq!(other.ask(&format!("set {elsewhere} v")), "+OK\r\n");
    let started = Instant::now();
    assert_eq!(client.ask("wait 1 50"), ":0\r\n");
    assert!(started.elapsed() >= Duration::from_millis(50));
    one.applied_seq.store(1, Ordering::Relaxed);
    assert_eq!(client.ask("wait 1 0"), ":1\r\n");
    // A command behind WAIT is done after it, and nobody else waits. (The links give no notice here, so
    // that the time runs out; what is counted then is right.)
    client.send(&[encode(&["wait", "2", "300"]), encode(&["ping"])].concat());
    assert_eq!(other.ask("ping"), "+PONG\r\n");
    all[1].applied_seq.store(1, Ordering::Relaxed);
    assert_eq!(client.reply(), b":2\r\n");
    assert_eq!(client.reply(), b"+PONG\r\n");
}

#[test]
fn config_set_takes_all_of_it_or_none() {
    let server = TestServer::start();
    let mut client = server.connect();
    let get = |client: &mut crate::resp_support::Client<std::net::TcpStream>, name: &str| {
        let reply = client.ask(&format!("config get {name}"));
        reply.split("\r\n").nth(4).unwrap_or_default().to_owned()
    };
    assert_eq!(client.ask("config set sync-level applied sync-timeout 250ms"), "+OK\r\n");
    assert_eq!(
        (get(&mut client, "sync-level"), get(&mut client, "sync-timeout")),
        ("applied".into(), "250ms".into())
    );
    for (words, wanted) in [
        ("sync-level none sync-timeout 3", "possibly related to argument 'sync-timeout') - wanted a time"),
        (
            "sync-level none maxmemory 100",
            "failed (possibly related to argument 'maxmemory') - can't set immutable config",
        ),
        ("sync-level none hz 100", "Unknown option or number of arguments for CONFIG SET - 'hz'"),
        ("sync-level none sync-followers 0", "must be between 1 and 65535"),
        ("min-followers-max-lag 7", "wanted a time"),
        ("min-replicas-to-write -1", "couldn't be parsed into an integer"),
        ("reads-while-syncing maybe", "must be 'yes' or 'no'"),
        ("sync-level", "wrong number of arguments for 'config|set'"),
    ] {
        let error = client.ask(&format!("config set {words}"));
        assert!(error.starts_with("-ERR ") && error.contains(wanted), "{words}: {error}");
    }
    assert_eq!(get(&mut client, "sync-level"), "applied");
    assert_eq!(client.ask("config set maxmemory 0 appendonly no"), "+OK\r\n", "it is so");
    let refused = client.ask("config rewrite");
    assert_eq!(refused, "-ERR The server is running without a config file\r\n", "nothing keeps it");
    assert_eq!(client.ask("config set min-slaves-to-write 2 min-replicas-max-lag 7"), "+OK\r\n");
    assert_eq!(get(&mut client, "min-replicas-to-write"), "2");
    assert_eq!(get(&mut client, "min-slaves-max-lag"), "7");
    assert_eq!(client.ask("config set min-followers-max-lag 500ms"), "+OK\r\n");
    assert_eq!(get(&mut client, "min-followers-max-lag"), "500ms");
    // It holds from the next command of the same pipeline on.
    client.send(
        &[
            encode(&["config", "set", "min-replicas-to-write", "0", "sync-level", "none"]),
            encode(&["set", "k", "v"]),
        ]
        .concat(),
    );
    assert_eq!((client.reply(), client.reply()), (b"+OK\r\n".to_vec(), b"+OK\r\n".to_vec()));
    client.send(
        &[encode(&["config", "set", "min-replicas-to-write", "1"]), encode(&["set", "k", "v"])].concat(),
    );
    assert_eq!(client.reply(), b"+OK\r\n");
    assert_eq!(client.reply(), b"-NOREPLICAS Not enough good replicas to write.\r\n");
}

#[test]
fn a_waiting_client_that_leaves_is_let_go() {
    let server = TestServer::start();
    let mut client = server.connect();
    client.send(&encode(&["wait", "1", "0"]));
    wait_until("the client being known", || server.server.counters().totals().connected_clients == 1);
    drop(client);
    wait_until("the client being let go", || server.server.counters().totals().connected_clients == 0);
}

#[test]
fn replies_larger_than_a_turn_are_whole() {
    let server = TestServer::start();
    let mut client = server.connect();
    let value = "v".repeat(60_000);
    assert_eq!(client.call(&["set", "big", &value]), b"+OK\r\n");
    let one = format!("${}\r\n{value}\r\n", value.len());
    let mget: Vec<&str> = std::iter::once("mget").chain(std::iter::repeat_n("big", 200)).collect();
    let wanted = format!("*200\r\n{}", one.repeat(200));
    assert!(client.call(&mget) == wanted.as_bytes(), "mget");
    assert!(client.ask(&mget.join(" ")) == wanted, "mget again");
    client.send(format!("{}\r\nping\r\n", mget.join(" ")).as_bytes());
    assert!(client.reply() == wanted.as_bytes(), "inline mget");
    assert_eq!(client.reply(), b"+PONG\r\n");
    client.call(&["multi"]);
    (0..100).for_each(|_| assert_eq!(client.call(&["get", "big"]), b"+QUEUED\r\n"));
    assert!(client.call(&["exec"]) == format!("*100\r\n{}", one.repeat(100)).as_bytes(), "exec");
    assert_eq!(client.call(&["ping"]), b"+PONG\r\n");
}

#[test]
fn a_reply_that_is_made_as_a_whole_is_bounded() {
    let server = TestServer::start();
    let mut client = server.connect();
    assert_eq!(client.call(&["set", "big", &"v".repeat(60_000)]), b"+OK\r\n");
    let refused = "-ERR the reply is larger than 33554432 bytes;";
    let mget = format!("mget {}", "big ".repeat(600));
    client.send(format!("{mget}\r\nping\r\n").as_bytes());
    assert!(client.reply().starts_with(refused.as_bytes()));
    assert_eq!(client.reply(), b"+PONG\r\n");
    // Keys that are not there take no room.
    client.send(format!("mget {}\r\n", "nil ".repeat(600)).as_bytes());
    assert_eq!(client.reply(), format!("*600\r\n{}", "$-1\r\n".repeat(600)).as_bytes());
    client.call(&["multi"]);
    client.call(&mget.split_ascii_whitespace().collect::<Vec<_>>());
    client.call(&["get", "nil"]);
    let reply = String::from_utf8(client.call(&["exec"])).expect("text");
    assert!(reply.starts_with(&format!("*2\r\n{refused}")) && reply.ends_with("\r\n$-1\r\n"), "{reply}");
}

#[test]
fn a_command_larger_than_a_read_is_done() {
    let server = TestServer::start();
    let mut client = server.connect();
    let value = "v".repeat(50_000);
    let mut command = vec!["mset".to_owned()];
    for index in 0..100 {
        command.extend([format!("key{index}"), value.clone()]);
    }
    // Five megabytes in one command, with another behind it.
    client.send(&[encode(&command), encode(&["get", "key99"])].concat());
    assert_eq!(client.reply(), b"+OK\r\n");
    assert_eq!(client.reply(), format!("${}\r\n{value}\r\n", value.len()).as_bytes());
}

#[test]
fn scan_returns_what_is_there_throughout() {
    let server = TestServer::start();
    let (mut client, mut writer) = (server.connect(), server.connect());
    for index in 0..2000 {
        writer.ask(&format!("set stay:{index} v"));
        writer.ask(&format!("set go:{index} v"));
    }
    let (mut seen, mut cursor, mut round) = (std::collections::HashSet::new(), "0".to_owned(), 0);
    loop {
        let reply = client.ask(&format!("scan {cursor} count 50"));
        let lines: Vec<&str> = reply.split("\r\n").collect();
        cursor = lines[2].to_owned();
        seen.extend(lines[4..].iter().filter(|line| line.contains(':')).map(|line| (*line).to_owned()));
        // Other records come, go and change while the scan is under way.
        for index in round * 50..(round + 1) * 50 {
            writer.ask(&format!("del go:{index}"));
            writer.ask(&format!("set new:{index} v"));
            writer.ask(&format!("set stay:{index} changed"));
        }
        round += 1;
        if cursor == "0" {
            break;
        }
    }
    assert!((0..2000).all(|index| seen.contains(&format!("stay:{index}"))));
    assert!(
        client.ask("scan 99999999999999").starts_with("*2\r\n$1\r\n0\r\n*0\r\n"),
        "a cursor from elsewhere"
    );
}

#[test]
fn command_describes_every_command() {
    let server = TestServer::start();
    let mut client = server.connect();
    let count = client.ask("command count");
    let all = client.ask("command");
    assert_eq!(format!(":{}", all[1..].split_once("\r\n").unwrap().0), count.trim_end());
    assert_eq!(client.ask("command docs get"), "*0\r\n", "clients know what GET is");
    let docs = client.ask("command docs get SlotStream.WaitSeq");
    assert!(docs.starts_with("*2\r\n$18\r\nslotstream.waitseq\r\n*4\r\n$7\r\nsummary\r\n"), "{docs}");
    assert_eq!(
        client.ask("command info get"),
        "*1\r\n*10\r\n$3\r\nget\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n*0\r\n*0\r\n"
    );
}
