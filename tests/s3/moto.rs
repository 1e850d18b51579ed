//! moto (`pip install moto`): a server that speaks S3, here with signatures and rights checked. It keeps objects in
//! memory, so each test has one of its own.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{connect, poll};

/// The bucket that the user may do everything with.
pub(crate) const BUCKET: &str = "backups";
/// One that the user might use, and that is not there.
pub(crate) const MISSING: &str = "missing";

const USER_POLICY: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":
["arn:aws:s3:::backups","arn:aws:s3:::backups/*","arn:aws:s3:::missing","arn:aws:s3:::missing/*"]}]}"#;
/// Python reads many files before it serves.
const START: Duration = Duration::from_secs(120);

/// A running server with a bucket, and a user who may use it.
pub(crate) struct Moto {
    child: Child,
    pub(crate) address: SocketAddr,
    key_id: String,
    secret: String,
    _log: tempfile::TempDir,
}

impl Moto {
    /// `None` (said loudly) where it is not installed.
    pub(crate) fn start() -> Option<Self> {
        let directory = tempfile::tempdir().expect("temp dir");
        let log = directory.path().join("log");
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/moto/bin/moto_server");
        let program = if own.exists() { own } else { PathBuf::from("moto_server") };
        let spawned = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("creates"))
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                eprintln!(
                    "SKIPPED: backups in object storage need moto_server ({program:?}: {error}); see .ci/run"
                );
                return None;
            }
        };
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let (key_id, secret) = (String::new(), String::new());
        let mut server = Self { child, address: unknown, key_id, secret, _log: directory };
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        let address = || -> Option<SocketAddr> {
            text().split("Running on http://").nth(1)?.lines().next()?.trim().parse().ok()
        };
        let serves = poll(START, || {
            address().is_some() || server.child.try_wait().expect("a child of ours").is_some()
        });
        server.address = address().unwrap_or_else(|| panic!("moto does not serve ({serves}): {}", text()));
        server.prepare();
        Some(server)
    }

    fn prepare(&mut self) {
        self.iam(&[("Action", "CreateUser"), ("UserName", "u")]);
        let key = self.iam(&[("Action", "CreateAccessKey"), ("UserName", "u")]);
        let field = |name: &str| {
            let rest = key.split(&format!("<{name}>")).nth(1).expect("the field");
            rest.split('<').next().expect("a value").to_owned()
        };
        (self.key_id, self.secret) = (field("AccessKeyId"), field("SecretAccessKey"));
        let policy = [
            ("Action", "PutUserPolicy"),
            ("UserName", "u"),
            ("PolicyName", "p"),
            ("PolicyDocument", USER_POLICY),
        ];
        self.iam(&policy);
        assert_eq!(self.request("PUT", &format!("/{BUCKET}"), "s3", b"").0, 200);
        self.check_signatures(true);
    }

    /// What a client needs to know of this server, which it reaches at `endpoint`.
    pub(crate) fn introduce(&self, command: &mut Command, endpoint: SocketAddr) {
        command
            .env("AWS_ACCESS_KEY_ID", &self.key_id)
            .env("AWS_SECRET_ACCESS_KEY", &self.secret)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL", format!("http://{endpoint}"))
            .env("AWS_ALLOW_HTTP", "true");
    }

    /// An object of the bucket, if it is there.
    pub(crate) fn object(&self, key: &str) -> Option<Vec<u8>> {
        let (code, body) = self.unchecked("GET", key, b"");
        assert!(code == 200 || code == 404, "{code}: {}", String::from_utf8_lossy(&body));
        (code == 200).then_some(body)
    }

    /// Replaces an object of the bucket.
    pub(crate) fn replace(&self, key: &str, bytes: &[u8]) {
        assert_eq!(self.unchecked("PUT", key, bytes).0, 200);
    }

    /// Deletes an object of the bucket.
    pub(crate) fn delete(&self, key: &str) {
        assert_eq!(self.unchecked("DELETE", key, b"").0, 204);
    }

    fn unchecked(&self, method: &str, key: &str, body: &[u8]) -> (u16, Vec<u8>) {
        self.check_signatures(false);
        let answer = self.request(method, &format!("/{BUCKET}/{key}"), "s3", body);
        self.check_signatures(true);
        answer
    }

    /// From how many requests on signatures and rights are checked.
    fn check_signatures(&self, checks: bool) {
        let from: &[u8] = if checks { b"0" } else { b"inf" };
        assert_eq!(self.request("POST", "/moto-api/reset-auth", "s3", from).0, 200);
    }

    fn iam(&self, fields: &[(&str, &str)]) -> String {
        let escape = |text: &str| -> String {
            text.bytes()
                .map(|byte| match byte {
                    b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
                    b => format!("%{b:02X}"),
                })
                .collect()
        };
        let mut body = "Version=2010-05-08".to_owned();
        for (name, value) in fields {
            body.push_str(&format!("&{name}={}", escape(value)));
        }
        let (code, answer) = self.request("POST", "/", "iam", body.as_bytes());
        let answer = String::from_utf8(answer).expect("UTF-8");
        assert_eq!(code, 200, "{answer}");
        answer
    }

    /// One request that names a service and is not signed.
    fn request(&self, method: &str, path: &str, service: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let kind = if service == "iam" { "application/x-www-form-urlencoded" } else { "text/plain" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/{service}/aws4_request, \
             SignedHeaders=host, Signature=x\r\n\r\n",
            self.address,
            body.len()
        );
        let mut stream = connect(self.address);
        stream.write_all(head.as_bytes()).expect("sends");
        stream.write_all(body).expect("sends");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let code = String::from_utf8_lossy(&answer[9..12]).parse().expect("a status");
        (code, answer.split_off(end + 4))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}
