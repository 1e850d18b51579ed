//! Floor 5: metrics, health and status over HTTP, on a thread of its own.
//!
//! `/metrics`, `/livez`, `/readyz?verbose`, `/leader`, `/follower?max_lag=1s`, `/status`. Liveness never
//! depends on replication. Whatever a client sends costs bounded time and memory here, and never touches
//! the threads that serve data.

mod collect;
mod routes;
mod server;

pub use collect::{Collector, install_recorder};
pub use routes::Context;
pub use server::Server;
