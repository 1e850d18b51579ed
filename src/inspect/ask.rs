//! Asking a node over its Redis port who it is: what a change of role must know of the other side.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use super::redis::{Client, Reply};
use crate::follower::{ProbeError, probe};

/// What a node says of itself in `INFO server replication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Where it was asked.
    pub address: SocketAddr,
    /// Names this run of its process.
    pub run_id: String,
    /// Names it in its leader's figures.
    pub node_id: String,
    /// Whom it follows, `HOST:PORT` of that one's Redis port; `None`: it leads.
    pub follows: Option<String>,
    /// Of a leader that was replaced and takes no writes: the newer epoch.
    pub superseded_by_epoch: Option<u64>,
    /// Where it takes followers, or would.
    pub replication_port: u16,
    /// Shards of its store, if it says.
    pub shard_count: Option<u16>,
    /// `no-failover`, or how far a hand-over is.
    pub failover: String,
    /// How the last hand-over ended; empty if there was none.
    pub last_failover: String,
}

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The address means nothing.
    #[error("{address}: {error}")]
    Address {
        /// What was named.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// No connection, no answer, or no Redis protocol.
    #[error("{address}: {error}")]
    Io {
        /// What was named.
        address: String,
        /// What went wrong.
        error: io::Error,
    },
    /// Followers are taken there.
    #[error(
        "{address} is where a slotstream node takes followers; wanted the address where it serves Redis clients{}",
        resp_port_hint(*resp_port)
    )]
    ReplicationPort {
        /// What was named.
        address: String,
        /// Where that node serves Redis clients; 0 = it does not say.
        resp_port: u16,
    },
    /// An error for an answer.
    #[error("{address} answers: {text}")]
    Refused {
        /// What was named.
        address: String,
        /// What it said.
        text: String,
    },
    /// A server of another kind.
    #[error("{address} is no slotstream node ({found}); wanted the address where one serves Redis clients")]
    Foreign {
        /// What was named.
        address: String,
        /// What it is.
        found: String,
    },
}

fn resp_port_hint(port: u16) -> String {
    if port == 0 { String::new() } else { format!(", port {port}") }
}

impl AskError {
    fn io(address: &str, error: io::Error) -> Self {
        let address = address.to_owned();
        // The bare words of a read that took too long say nothing.
        let error = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
            }
            io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "closed without an answer"),
            _ => error,
        };
        Self::Io { address, error }
    }

    /// What hangs up on a Redis client may be a port that takes followers: it is asked as one.
    fn of_port(self, timeout: Duration) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let Self::Io { address, error } = self else { return self };
        if matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe) {
            match probe(&address, timeout) {
                Ok(info) => return Self::ReplicationPort { address, resp_port: info.resp_port },
                Err(ProbeError::Refused { .. }) => return Self::ReplicationPort { address, resp_port: 0 },
                Err(_) => {}
            }
        }
        Self::Io { address, error }
    }
}

/// A connection to a node's Redis port, and what the node said of itself on it.
pub struct Asked {
    client: Client,
    address: String,
    /// What it said first.
    pub info: NodeInfo,
}

impl Asked {
    /// Connects to `address` (`HOST:PORT`) and asks; each step may take `timeout`.
    pub fn new(address: &str, timeout: Duration) -> Result<Self, AskError> {
        let target = address
            .to_socket_addrs()
            .and_then(|mut found| found.next().ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(|error| AskError::Address { address: address.to_owned(), error })?;
        let client = Client::connect_within(target, timeout).map_err(|error| AskError::io(address, error))?;
        let mut client = client;
        let info = info(&mut client, address, target).map_err(|error| error.of_port(timeout))?;
        Ok(Self { client, address: address.to_owned(), info })
    }

    /// Sends a command; its reply, if that is no error.
    pub(super) fn call(&mut self, words: &[&str]) -> Result<Reply, AskError> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let reply = self.client.call(&words).map_err(|error| AskError::io(&self.address, error))?;
        match reply {
            Reply::Error(text) => Err(AskError::Refused { address: self.address.clone(), text }),
            reply => Ok(reply),
        }
    }

    /// Sends a command; the text of its `+` reply.
    pub fn order(&mut self, words: &[&str]) -> Result<String, AskError> {
        match self.call(words)? {
            Reply::Simple(text) => Ok(text),
            other => Err(AskError::Foreign { address: self.address.clone(), found: other.to_string() }),
        }
    }

    /// Asks again.
    pub fn again(&mut self) -> Result<&NodeInfo, AskError> {
        self.info = info(&mut self.client, &self.address, self.info.address)?;
        Ok(&self.info)
    }
}

fn info(client: &mut Client, address: &str, target: SocketAddr) -> Result<NodeInfo, AskError> {
    let reply = client
        .call(&[b"INFO".as_slice(), b"server", b"replication"])
        .map_err(|error| AskError::io(address, error))?;
    let text = match reply {
        Reply::Bulk(Some(text)) => String::from_utf8_lossy(&text).into_owned(),
        Reply::Error(text) => return Err(AskError::Refused { address: address.to_owned(), text }),
        other => {
            return Err(AskError::Foreign { address: address.to_owned(), found: other.to_string() });
        }
    };
    parse(&text, target).map_err(|found| AskError::Foreign { address: address.to_owned(), found })
}

/// Reads INFO's lines; the error says what is there instead of a slotstream node.
fn parse(text: &str, address: SocketAddr) -> Result<NodeInfo, String> {
    let fields: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| fields.get(name).map(|value| (*value).to_owned());
    let missing = |name: &str| match field("redis_version") {
        Some(version) => format!("its INFO has no {name}; it calls itself Redis {version}"),
        None => format!("its INFO has no {name}"),
    };
    let wanted = |name: &str| field(name).ok_or_else(|| missing(name));
    let replication_port = wanted("slotstream_replication_port")?;
    let follows = match wanted("role")?.as_str() {
        "master" => None,
        _ => Some(format!("{}:{}", bracketed(&wanted("master_host")?), wanted("master_port")?)),
    };
    Ok(NodeInfo {
        address,
        run_id: wanted("run_id")?,
        node_id: wanted("slotstream_node_id")?,
        follows,
        superseded_by_epoch: field("slotstream_superseded_by_epoch")
            .and_then(|epoch| epoch.parse().ok())
            .filter(|epoch| *epoch != 0),
        replication_port: replication_port.parse().map_err(|_| missing("slotstream_replication_port"))?,
        shard_count: field("slotstream_shard_count").and_then(|count| count.parse().ok()),
        failover: wanted("master_failover_state")?,
        last_failover: field("slotstream_last_failover").unwrap_or_default(),
    })
}

/// A host as it stands before a port.
#[must_use]
pub fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_is_no_slotstream_and_a_follower_names_its_leader() {
        let address: SocketAddr = ([127, 0, 0, 1], 1).into();
        let found = parse("redis_version:7.0.15\r\nrole:master\r\nrun_id:ab\r\n", address);
        assert!(found.is_err_and(|found| found.contains("Redis 7.0.15")));
        let text = "run_id:ab\r\nrole:slave\r\nmaster_host:::1\r\nmaster_port:6379\r\n\
                    master_failover_state:no-failover\r\nslotstream_node_id:n\r\nslotstream_replication_port:7\r\n";
        let info = parse(text, address).expect("a node");
        assert_eq!((info.follows.as_deref(), info.replication_port), (Some("[::1]:6379"), 7));
    }
}
