//! Real clients, as they stand: redis-cli, redis-benchmark, redis-rs, redis-py.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use redis::{Commands, ExistenceCheck, SetExpiry, SetOptions};

use crate::resp_support::{TestServer, encode, has_program, skip};

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("the program ends");
    // A program that does not read all its input closes the pipe early.
    drop(feeder.join().expect("the feeder ends"));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn redis_cli_works() {
    if !has_program("redis-cli") {
        return;
    }
    let server = TestServer::start();
    let script = "SET greeting \"hello world\"\nGET greeting\nINCR n\nMGET greeting n none\nHELLO 3\nCONFIG GET save\n\
                  SET k v EX 100\nTTL k\nNOSUCH x\nTYPE k\n";
    let output = run(Command::new("redis-cli").args(["-p", &server.port()]), script.as_bytes());
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    for wanted in [
        "OK\nhello world\n1\nhello world\n1\n\n",
        "server redis\n",
        "OK\n100\n",
        "ERR unknown command 'NOSUCH'",
        "string\n",
    ] {
        assert!(shown.contains(wanted), "{wanted:?} in {shown}");
    }
    let output = run(Command::new("redis-cli").args(["-p", &server.port(), "--scan"]), b"");
    let mut keys: Vec<_> = text(&output).lines().map(str::to_owned).collect();
    keys.sort();
    assert_eq!(keys, ["greeting", "k", "n"]);
}

#[test]
fn redis_cli_pipe_loads_a_hundred_thousand_records() {
    if !has_program("redis-cli") {
        return;
    }
    let server = TestServer::start();
    let mut load = Vec::new();
    for index in 0..100_000 {
        load.extend_from_slice(&encode(&["SET", &format!("key:{index}"), &format!("value:{index}")]));
    }
    let output = run(Command::new("redis-cli").args(["-p", &server.port(), "--pipe"]), &load);
    let shown = text(&output);
    assert!(shown.contains("errors: 0, replies: 100000"), "{shown}");
    assert_eq!(server.connect().ask("dbsize"), ":100000\r\n");
    assert_eq!(server.connect().ask("get key:99999"), "$11\r\nvalue:99999\r\n");
}

#[test]
fn redis_benchmark_works() {
    if !has_program("redis-benchmark") {
        return;
    }
    let server = TestServer::start();
    for pipeline in ["1", "16", "64"] {
        let output = run(
            Command::new("redis-benchmark")
                .args(["-p", &server.port(), "-q", "-t", "set,get,incr,mset,ping"])
                .args(["-n", "10000", "-c", "20", "-P", pipeline, "-r", "1000", "-d", "64"]),
            b"",
        );
        let shown = text(&output);
        assert!(output.status.success() && shown.matches("requests per second").count() >= 5, "{shown}");
        assert!(!shown.to_lowercase().contains("err"), "{shown}");
    }
}

#[test]
fn redis_rs_works() -> redis::RedisResult<()> {
    let server = TestServer::start();
    for protocol in ["", "?protocol=resp3"] {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/{protocol}", server.port()))?;
        let mut connection = client.get_connection()?;
        let _: () = connection.set("key", "value")?;
        assert_eq!(connection.get::<_, String>("key")?, "value");
        assert_eq!(connection.get::<_, Option<String>>("none")?, None);
        let options = SetOptions::default()
            .conditional_set(ExistenceCheck::NX)
            .get(true)
            .with_expiration(SetExpiry::EX(100));
        assert_eq!(
            connection.set_options::<_, _, Option<String>>("key", "other", options)?,
            Some("value".into())
        );
        assert_eq!(connection.incr::<_, _, i64>("counter", 5)?, 5);
        let values: Vec<Option<String>> = connection.mget(&["key", "none", "counter"])?;
        assert_eq!(values, [Some("value".into()), None, Some("5".into())]);
        let (a, b): (i64, String) =
            redis::pipe().atomic().incr("counter", 1).get("key").query(&mut connection)?;
        assert_eq!((a, b.as_str()), (6, "value"));
        let results: Vec<i64> = {
            let mut pipe = redis::pipe();
            (0..1000).for_each(|_| {
                pipe.incr("many", 1);
            });
            pipe.query(&mut connection)?
        };
        assert_eq!(results.last(), Some(&1000));
        let keys: Vec<String> = connection.scan::<String>()?.collect::<Result<_, _>>()?;
        assert_eq!(keys.len(), 3);
        let error = connection.incr::<_, _, i64>("key", 1).unwrap_err();
        assert_eq!(error.detail(), Some("value is not an integer or out of range"));
        let _: () = redis::cmd("FLUSHALL").query(&mut connection)?;
        assert_eq!(redis::cmd("DBSIZE").query::<i64>(&mut connection)?, 0);
    }
    Ok(())
}

const REDIS_PY: &str = r#"
import redis, sys
port = int(sys.argv[1])
for protocol in (2, 3):
    r = redis.Redis(port=port, protocol=protocol, decode_responses=True, client_name="py")
    assert r.ping()
    assert r.set("key", "value", ex=100)
    assert r.get("key") == "value" and 98 <= r.ttl("key") <= 100
    assert r.set("key", "other", nx=True) is None
    assert r.set("key", "third", get=True) == "value"
    assert r.mset({"a": 1, "b": 2}) and r.mget("a", "b", "none") == ["1", "2", None]
    assert r.incrby("a", 41) == 42 and r.append("b", "x") == 2 and r.strlen("b") == 2
    with r.pipeline() as p:
        assert p.set("p", 1).incr("p").get("p").execute() == [True, 2, "2"]
    with r.pipeline(transaction=False) as p:
        for i in range(2000):
            p.set(f"many:{i}", i)
        assert all(p.execute())
    assert len(list(r.scan_iter(match="many:*", count=100))) == 2000
    assert r.delete("a", "b", "none") == 2 and r.exists("p", "key") == 2
    assert r.type("key") == "string" and r.type("none") == "none"
    assert r.getdel("p") == "2" and r.getex("key", persist=True) == "third" and r.ttl("key") == -1
    info = r.info()
    assert info["role"] == "master" and info["loading"] == 0 and info["db0"]["keys"] == r.dbsize()
    assert r.role()[0] == "master" and r.config_get("databases") == {"databases": "1"}
    assert any(c["name"] == "py" for c in r.client_list())
    assert r.client_getname() == "py" and r.wait(0, 10) == 0 and len(r.time()) == 2
    assert r.command_count() > 40 and "get" in r.command()
    try:
        r.incr("key"); assert False
    except redis.ResponseError as e:
        assert "not an integer" in str(e)
    shards = range(4)
    last = {f"changes:{i}": r.xinfo_stream(f"changes:{i}")["last-generated-id"] for i in shards}
    assert not r.xread(last)
    r.set("feed", "me", ex=100)
    r.delete("feed")
    r.set("other", "one", ex=100)
    seen = {}
    for stream in last:
        entries = dict(r.xread({stream: last[stream]}, count=10, block=5) or {}).get(stream, [])
        if entries and isinstance(entries[0], list):
            entries = entries[0] # as RESP3 has it
        for id, fields in entries:
            seen[fields["key"]] = (stream, id, fields)
    assert seen["other"][2]["op"] == "set" and seen["other"][2]["value"] == "one"
    assert int(seen["other"][2]["expire_at"]) > 1000
    stream, id, fields = seen["other"]
    assert not r.xread({stream: id}), "an id resumes"
    assert r.flushall() and r.dbsize() == 0
print("redis-py", redis.__version__, "ok")
"#;

#[test]
fn redis_py_works() {
    if !has_program("python3") {
        return;
    }
    // Kept between runs, so that the package is fetched once.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("redis-py");
    let python = directory.join("bin/python");
    let has_redis = || {
        Command::new(&python)
            .args(["-c", "import redis"])
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !has_redis() {
        let venv = run(Command::new("python3").args(["-m", "venv"]).arg(&directory), b"");
        if !venv.status.success() {
            return skip(&format!("python3 -m venv: {}", text(&venv)));
        }
        let pip = run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "redis"]), b"");
        if !pip.status.success() {
            return skip(&format!("pip install redis: {}", text(&pip)));
        }
    }
    let server = TestServer::start();
    let output = run(Command::new(&python).args(["-c", REDIS_PY, &server.port()]), b"");
    assert!(output.status.success(), "{}", text(&output));
    eprintln!("{}", text(&output));
}
