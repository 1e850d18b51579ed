//! Descriptors: a node needs one per shard file, per link and per client, far more than the usual soft limit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. What is still too little shows where it is needed.
pub(super) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, descriptors = limit.current, "the limit of open files cannot be raised");
    }
}
