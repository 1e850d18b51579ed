//! Backups in object storage: against a real server that speaks S3 and checks signatures and rights (moto, a process
//! of the test's own), through a door that cuts and holds connections, and against servers that answer wrongly.

#[allow(dead_code, unused_imports, reason = "the process tests use all of it")]
#[path = "../it/client.rs"]
mod client;
#[allow(dead_code, unused_imports, reason = "the process tests use all of it")]
#[path = "../it/harness.rs"]
mod harness;

mod backups;
mod broken;
mod canned;
mod door;
mod moto;
mod steps;
