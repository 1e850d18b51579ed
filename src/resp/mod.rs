//! Floor 4: the RESP server: Redis clients talk to it as they stand.
//!
//! [`Server::start`] binds the address and starts worker threads `resp-0`, `resp-1`, ..., each with a
//! `current_thread` runtime, a listener of its own on the same port and the connections that the
//! kernel gave it; workers share nothing but the store. A connection's turn is one read, all commands
//! in what was read, one write ([`connection`]). Requests are parsed in place ([`parse`]), looked up
//! in one table ([`table`]) and done by the functions in [`command`].

mod bell;
mod command;
mod connection;
mod context;
mod control;
mod error;
mod feeds;
mod float;
mod glob;
mod held;
mod inline;
mod kept;
mod number;
mod parse;
mod reply;
mod rules;
mod server;
mod session;
mod settings;
mod table;
mod turn;
mod worker;

pub use context::{Context, Node, Role};
pub use control::{Answer, Control, FailoverState, Order};
pub use rules::Demands;
pub use server::{Options, Server};
pub use settings::{Keeper, SettingError};
