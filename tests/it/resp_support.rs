//! A RESP server inside the test process, a client that shows raw replies, and Debian's redis-server.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slotstream::resp::{Context, Options, Server};
use slotstream::stop::Stop;
use slotstream::{Geometry, Store};

/// How long anything may take: generous, since machines are shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Sizes of the stores in these tests.
pub(crate) const GEOMETRY: Geometry =
    Geometry { shard_count: 4, key_size_max: 64, value_size_max: u16::MAX, shard_prefix_bits: 0 };

/// A server on a store in memory; ends with its scope.
pub(crate) struct TestServer {
    pub(crate) server: Server,
    pub(crate) context: Context,
}

impl TestServer {
    pub(crate) fn start() -> Self {
        Self::start_with(GEOMETRY, Options::default())
    }

    pub(crate) fn start_with(geometry: Geometry, options: Options) -> Self {
        let store = Store::open(Path::new("unused"), slotstream::Options::memory(geometry, 1 << 16))
            .expect("a store in memory opens");
        let context = Context::standalone(Arc::new(store), Stop::new());
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::start(any_port, options, context.clone()).expect("the server starts");
        Self { server, context }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }

    pub(crate) fn port(&self) -> String {
        self.address().port().to_string()
    }

    pub(crate) fn connect(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.address()).expect("the server accepts");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
        Client::new(stream.try_clone().expect("a second handle"), stream)
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.context.stop.set();
        self.server.join();
    }
}

/// A connection that gives replies as the bytes they are.
pub(crate) struct Client<S> {
    reader: BufReader<S>,
    writer: S,
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn new(reader: S, writer: S) -> Self {
        Self { reader: BufReader::new(reader), writer }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).expect("the server reads");
    }

    pub(crate) fn writer(&mut self) -> &mut S {
        &mut self.writer
    }

    /// One whole reply.
    pub(crate) fn reply(&mut self) -> Vec<u8> {
        self.try_reply().expect("the server replies")
    }

    pub(crate) fn try_reply(&mut self) -> io::Result<Vec<u8>> {
        let mut reply = Vec::new();
        self.read_reply(&mut reply)?;
        Ok(reply)
    }

    fn read_reply(&mut self, reply: &mut Vec<u8>) -> io::Result<()> {
        let start = reply.len();
        self.reader.read_until(b'\n', reply)?;
        if reply.len() == start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let kind = reply[start];
        let number = || -> i64 {
            let text = std::str::from_utf8(&reply[start + 1..]).expect("a length is text").trim();
            text.parse().expect("a length is a number")
        };
        match kind {
            b'$' | b'=' => {
                if let Ok(length) = usize::try_from(number()) {
                    let end = reply.len();
                    reply.resize(end + length + 2, 0);
                    self.reader.read_exact(&mut reply[end..])?;
                }
            }
            b'*' | b'~' | b'>' => {
                for _ in 0..number() {
                    self.read_reply(reply)?;
                }
            }
            b'%' => {
                for _ in 0..number() * 2 {
                    self.read_reply(reply)?;
                }
            }
            b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => {}
            other => panic!("no reply begins with {other:#x}"),
        }
        Ok(())
    }

    /// Sends a command and returns its reply.
    pub(crate) fn call<A: AsRef<[u8]>>(&mut self, command: &[A]) -> Vec<u8> {
        self.send(&encode(command));
        self.reply()
    }

    /// Sends a command of words between blanks; the reply as text.
    pub(crate) fn ask(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split(' ').collect();
        String::from_utf8(self.call(&words)).expect("a reply in text")
    }

    /// Whether the server has closed the connection, after what it may still have to say.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
        }
    }
}

/// A command as an array of bulk strings.
pub(crate) fn encode<A: AsRef<[u8]>>(command: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for arg in command {
        let arg = arg.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Says that a test did not run, and why.
pub(crate) fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

/// Whether a program can be started; says so if not.
pub(crate) fn has_program(name: &str) -> bool {
    let found =
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        skip(&format!("{name} is not installed"));
    }
    found
}

/// Polls until `condition` holds; panics at the deadline.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A redis-server of its own, on a Unix socket in a temporary directory.
pub(crate) struct RedisServer {
    process: Child,
    directory: tempfile::TempDir,
}

impl RedisServer {
    /// `None`, and a word about it, where there is no redis-server.
    pub(crate) fn start() -> Option<Self> {
        Self::start_from(None)
    }

    /// One that loads a dump first.
    pub(crate) fn start_from(dump: Option<&Path>) -> Option<Self> {
        if !has_program("redis-server") {
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        if let Some(dump) = dump {
            std::fs::copy(dump, directory.path().join("dump.rdb")).expect("a copy");
        }
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--unixsocket")
            .arg(directory.path().join("redis.sock"))
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let redis = Self { process, directory };
        wait_until("redis-server listening", || redis.try_connect().is_ok());
        Some(redis)
    }

    /// Where SAVE writes.
    pub(crate) fn dump(&self) -> std::path::PathBuf {
        self.directory.path().join("dump.rdb")
    }

    fn try_connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.directory.path().join("redis.sock"))
    }

    pub(crate) fn connect(&self) -> Client<UnixStream> {
        let stream = self.try_connect().expect("redis-server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        Client::new(stream.try_clone().expect("a second handle"), stream)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
