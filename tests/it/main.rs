//! Tests with real processes, sockets and files; a module per scenario.
//!
//! `cargo nextest run` runs each test in a process of its own. Tests that load the machine begin with
//! `heavy_` and run one at a time.

mod alone;
mod always;
mod backup;
mod bus_error;
mod changes;
mod cli;
mod client;
mod crash;
mod damaged;
mod default_level;
mod demo;
mod disk;
mod durability;
mod expiry;
mod feed_export;
mod forgotten;
mod full_log;
mod garbage;
mod guard_rails;
mod harness;
mod hash_tags;
mod http;
mod lag;
mod levels;
mod load;
mod network;
mod orders;
mod power_cuts;
mod regain;
mod regain_broken;
mod remount;
mod resp_clients;
mod resp_commands;
mod resp_differential;
mod resp_hostile;
mod resp_roles;
mod resp_server;
mod resp_strings;
mod resp_support;
mod resp_transactions;
mod restart;
mod rewind;
mod roles;
mod roles_at_run_time;
mod rows;
mod saves;
mod settings;
mod switchover;
mod switchover_steps;
mod tidy;
mod transactions;
mod unicode;
mod usage;
