//! As much of a Redis client as the harness needs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// A connection that answers one request at a time.
#[derive(Debug)]
pub struct RespClient {
    stream: BufReader<TcpStream>,
}

impl RespClient {
    /// Connects, with a minute's patience for every answer.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(70)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request whose answer is text.
    pub fn text(&mut self, words: &[&str]) -> Result<String> {
        self.send(words)?;
        self.reply()
    }

    /// Sends a request whose answer is an integer.
    pub fn integer(&mut self, words: &[&str]) -> Result<i64> {
        Ok(self.text(words)?.parse()?)
    }

    /// Sets `key:000000000000` and the `count - 1` keys after it, which are the keys of redis-benchmark.
    pub fn fill(&mut self, count: u64, value: &str) -> Result<()> {
        const BATCH: u64 = 500;
        for first in (0..count).step_by(500) {
            self.set_all(first..count.min(first + BATCH), value)?;
        }
        Ok(())
    }

    /// Sets the keys with these indexes, in one go.
    pub fn set_all(&mut self, indexes: impl Iterator<Item = u64>, value: &str) -> Result<()> {
        let mut request = Vec::new();
        let mut count = 0;
        for index in indexes {
            encode(&mut request, &["SET", &format!("key:{index:012}"), value])?;
            count += 1;
        }
        self.stream.get_mut().write_all(&request)?;
        for _ in 0..count {
            self.reply()?;
        }
        Ok(())
    }

    fn send(&mut self, words: &[&str]) -> Result<()> {
        let mut request = Vec::new();
        encode(&mut request, words)?;
        Ok(self.stream.get_mut().write_all(&request)?)
    }

    fn reply(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").context("the connection has ended")?;
        let (kind, rest) = line.split_at_checked(1).context("the reply is an empty line")?;
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "$" => {
                let mut bytes = vec![0; rest.parse::<usize>()? + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(String::from_utf8(bytes)?)
            }
            _ => bail!("the reply is {line:?}"),
        }
    }
}

fn encode(request: &mut Vec<u8>, words: &[&str]) -> Result<()> {
    write!(request, "*{}\r\n", words.len())?;
    for word in words {
        write!(request, "${}\r\n{word}\r\n", word.len())?;
    }
    Ok(())
}
