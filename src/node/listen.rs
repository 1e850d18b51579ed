//! Ports are bound before any data is touched, so that a port in use is one clear line and nothing else.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context as _;
use socket2::{Domain, Socket, Type};

use crate::status::Addresses;

/// Binds; the error names the option.
pub(super) fn bind(option: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| cannot_listen(option, address, error))
}

fn cannot_listen(option: &str, address: SocketAddr, error: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("cannot listen on {address} (--{option})"))
}

/// Binds where followers connect: where it was said, else at `default`. A node that follows (`may_move`) can do
/// without that port, which its leader has if both are on one machine: it takes another one.
pub(super) fn bind_replication(
    given: Option<SocketAddr>,
    default: SocketAddr,
    may_move: bool,
) -> anyhow::Result<(TcpListener, Option<Moved>)> {
    const OPTION: &str = "replication-listen";
    if let Some(address) = given {
        return Ok((bind(OPTION, address)?, None));
    }
    match TcpListener::bind(default) {
        Ok(listener) => Ok((listener, None)),
        Err(error) if may_move && error.kind() == ErrorKind::AddrInUse => {
            let listener = bind(OPTION, SocketAddr::new(default.ip(), 0))?;
            let to = listener.local_addr()?;
            Ok((listener, Some(Moved { from: default, to })))
        }
        Err(error) => Err(cannot_listen(OPTION, default, error)),
    }
}

/// Another port than the one that operators know.
#[derive(Debug)]
pub(super) struct Moved {
    from: SocketAddr,
    to: SocketAddr,
}

impl Moved {
    /// Says so, once there is a log.
    pub(super) fn say(&self) {
        tracing::warn!(
            wanted = %self.from,
            found = %self.to,
            "the port for followers is in use (the leader of this node is on this machine, perhaps): until the next \
             start this node takes followers at another one, should it lead; --replication-listen names one to stay"
        );
    }
}

/// A port that nobody else can listen on until this is dropped, for a server that binds it itself,
/// once per worker (SO_REUSEPORT).
pub(super) struct Reserved {
    pub(super) address: SocketAddr,
    _socket: Socket,
}

/// Reserves an address. Port 0 becomes a real one.
pub(super) fn reserve(option: &str, address: SocketAddr) -> anyhow::Result<Reserved> {
    // Exclusively first: with SO_REUSEPORT alone, a second process of the same user would quietly share the port.
    let address = bind(option, address)?.local_addr()?;
    let hold = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Bound and not listening: it holds the port and takes no connection.
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let socket = hold().with_context(|| format!("cannot listen on {address} (--{option})"))?;
    Ok(Reserved { address, _socket: socket })
}

/// Removes what an earlier run wrote: whoever sees the file must be able to trust it.
pub(super) fn remove_ports_file(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {} (--ports-file)", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes the bound addresses for whoever started this node at port 0. In one step: whoever sees the
/// file sees all of it.
pub(super) fn write_ports_file(path: &Path, addresses: &Addresses) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".new");
        std::fs::write(&unfinished, serde_json::to_string(addresses)? + "\n")?;
        std::fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("cannot write {} (--ports-file)", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_follower_moves_and_only_from_a_port_that_nobody_named() {
        let held = TcpListener::bind("127.0.0.1:0").expect("binds");
        let taken = held.local_addr().expect("address");
        let (listener, moved) = bind_replication(None, taken, true).expect("another port");
        let moved = moved.expect("it moved");
        assert_eq!((moved.from, moved.to), (taken, listener.local_addr().expect("address")));
        assert!(moved.to != taken && moved.to.port() != 0);
        for (given, default, may_move) in [(Some(taken), moved.to, true), (None, taken, false)] {
            let error = bind_replication(given, default, may_move).expect_err("taken");
            let text = format!("{error:#}");
            assert!(text.contains(&taken.to_string()) && text.contains("--replication-listen"), "{text}");
        }
        let any = "127.0.0.1:0".parse().expect("an address");
        assert!(bind_replication(None, any, true).is_ok_and(|(_, moved)| moved.is_none()));
    }
}
