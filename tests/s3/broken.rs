//! Servers that refuse, fail, or are none: exit code 1 and one line that names the place and what was answered.

use std::net::SocketAddr;
use std::path::Path;

use slotstream::backup::{Place, PlaceError};
use socket2::{Domain, Socket, Type};

use crate::canned::{Answer, Canned, answer};
use crate::harness::{Node, run_command, stderr};
use crate::moto::{MISSING, Moto};
use crate::steps::{LONG, assert_good, assert_refused, backup_command, clean, restore, s3};

/// A port that is taken, and at which nobody listens.
fn closed_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("binds");
    let address = socket.local_addr().expect("an address").as_socket().expect("of this kind");
    (socket, address)
}

/// What `restore` says of a server there.
fn said(endpoint: SocketAddr, more: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().expect("temp dir");
    let mut command = clean(&["restore", "s3://bucket/place", "--to"]);
    command.arg(directory.path().join("to"));
    for (name, value) in
        [("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_ALLOW_HTTP", "true")]
    {
        command.env(name, value);
    }
    command.env("AWS_ENDPOINT_URL", format!("http://{endpoint}"));
    for (name, value) in more {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    let output = run_command(&mut command, LONG);
    assert_refused(&output, "s3://bucket/place");
    let text = stderr(&output);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!directory.path().join("to").exists(), "a refused restore made the directory");
    text
}

#[test]
fn a_text_is_a_bucket_with_a_prefix_or_is_refused() {
    let parse = |text: &str| Place::parse(Path::new(text));
    for (text, shown) in [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a/b c/", "s3://bucket/a/b c"),
    ] {
        assert_eq!(parse(text).expect(text).to_string(), shown);
    }
    for bad in ["s3://", "s3:///prefix", "s3://bucket//", "s3://bucket/a//b", "s3://bucket/../b"] {
        let error = parse(bad).expect_err(bad);
        assert!(matches!(error, PlaceError::Bucket { .. }), "{error}");
    }
}

/// What the server does, more of the environment, and what is to be said.
type Case = (Answer, &'static [(&'static str, &'static str)], &'static str);

#[test]
fn every_wrong_answer_is_told_with_its_place() {
    let bytes = |status: &str, code: &str| Answer::Bytes(answer(status, code, "Because."));
    let page = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 15\r\nLast-Modified: Sat, 21 Nov 2026 06:00:00 GMT\r\n\
                ETag: \"x\"\r\n\r\n<html>no</html>";
    let cases: Vec<Case> = vec![
        (bytes("403 Forbidden", "AccessDenied"), &[], "403 Forbidden, AccessDenied: Because."),
        (bytes("404 Not Found", "NoSuchBucket"), &[], "404 Not Found, NoSuchBucket: Because."),
        (bytes("404 Not Found", "NoSuchKey"), &[], "s3://bucket/place: has no manifest.json"),
        (bytes("400 Bad Request", "InvalidRequest"), &[], "400 Bad Request"),
        (bytes("503 Service Unavailable", "SlowDown"), &[], "503 Service Unavailable"),
        (bytes("301 Moved Permanently", "PermanentRedirect"), &[], "region"),
        (Answer::Bytes(page.into()), &[], "manifest.json"),
        (Answer::Bytes(b"+PONG\r\n".to_vec()), &[], "manifest.json"),
        (Answer::HangUp, &[], "manifest.json"),
        (Answer::Silence, &[("AWS_TIMEOUT", "200ms")], "timed out"),
        (Answer::HangUp, &[("AWS_ALLOW_HTTP", "")], "that wants AWS_ALLOW_HTTP=true"),
        (Answer::HangUp, &[("AWS_SECRET_ACCESS_KEY", "")], "SecretAccessKey"),
    ];
    // Most of this is waiting, between one try and the next.
    std::thread::scope(|scope| {
        for (answer, more, wanted) in cases {
            scope.spawn(move || {
                let server = Canned::new(answer);
                let text = said(server.address, more);
                assert!(text.contains(wanted), "{wanted:?} is not in {text}");
            });
        }
        scope.spawn(|| {
            let (_taken, address) = closed_port();
            let text = said(address, &[]);
            assert!(text.contains("Connection refused"), "{text}");
        });
    });
}

#[test]
fn a_real_server_refuses_strangers_and_other_buckets() {
    let Some(moto) = Moto::start() else { return };
    let directory = tempfile::tempdir().expect("temp dir");
    let at = |name: &str| directory.path().join(name);
    let leader =
        Node::leader(&at("leader"), &["--shard-count", "2", "--key-size", "16", "--value-size", "64"]);
    assert_eq!(leader.client().call(&["SET", "k", "v"]).text(), "OK");
    let backup = |to: &str, name: &str, value: &str| {
        let mut command = backup_command(&leader, (&moto, moto.address), to, None);
        run_command(command.env(name, value), LONG)
    };
    let (key, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
    assert_refused(&backup(&s3("x"), secret, "wrong"), "SignatureDoesNotMatch");
    assert_refused(&backup(&s3("x"), key, "wrong"), "InvalidAccessKeyId");
    assert_refused(&backup("s3://other/x", "AWS_REGION", "us-east-1"), "AccessDenied");
    let missing = format!("s3://{MISSING}/x");
    assert_refused(&backup(&missing, "AWS_REGION", "us-east-1"), "NoSuchBucket");
    assert_refused(&restore(&moto, &[&missing], &at("to")), "NoSuchBucket");
    // A bad place is bad usage, before anybody is asked.
    let output = backup("s3://", key, "x");
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_refused(
        &restore(&moto, &[&s3("x")], "s3://backups/y".as_ref()),
        "wanted a directory of this machine",
    );
    assert_good(&backup(&s3("x"), "AWS_REGION", "us-east-1"));
    assert_good(&restore(&moto, &[&s3("x")], &at("to")));
}
