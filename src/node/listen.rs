//! Ports are bound before any data is touched, so that a port in use is one clear line and nothing else.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use anyhow::Context as _;
use socket2::{Domain, Socket, Type};

use crate::status::Addresses;

/// Binds; the error names the option.
pub(super) fn bind(option: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen on {address} (--{option})"))
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
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
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
