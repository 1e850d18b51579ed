//! A backup in object storage that speaks S3: the same files as in a directory, as objects below a prefix.
//!
//! Credentials, region and endpoint come from the environment (`AWS_*`, read by the crate `object_store`, which also
//! signs requests, and tries again with growing pauses what a server answers with 429 or 5xx and what broke off).
//! Object storage has no locks and no renames. So the manifest is written last, and only if there is none; before it,
//! every object is looked at once more: one that another process has replaced meanwhile is found. What an
//! unfinished backup left is overwritten, and nothing else below the prefix is looked at; parts of an upload that a kill cut off are not seen by anybody, and go by
//! the bucket's lifecycle rule for incomplete uploads.

mod download;
mod explain;
mod upload;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, ObjectMeta, ObjectStore as _, ObjectStoreExt as _, PutMode,
    RetryConfig,
};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use crate::store::directory::file_error;

use super::FileError;
use super::place::S3_SCHEME;
use super::storage::{ClaimError, MANIFEST_FILE, Part, Source, Storage};

use explain::explain;

/// A request that failed is tried again so often, if that may help, ...
const RETRIES_MAX: usize = 10;
/// ... with pauses by chance, that may grow from the first to the last of these: some 20 s in all.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A request may take as long as this, unless `AWS_TIMEOUT` says otherwise: a part, on a slow line.
const REQUEST_TIMEOUT: &str = "120s";
/// Deleting what is left of a failed backup is worth no long wait.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(10);

/// `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    name: String,
    /// Empty: the bucket holds one backup and nothing else.
    prefix: Key,
}

impl FromStr for Bucket {
    type Err = String;

    /// Parses what stands behind `s3://`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, prefix) = text.split_once('/').unwrap_or((text, ""));
        if name.is_empty() {
            return Err("it names no bucket".to_owned());
        }
        let prefix =
            Key::parse(prefix.strip_suffix('/').unwrap_or(prefix)).map_err(|error| error.to_string())?;
        if prefix.as_ref().is_empty() && text.ends_with("//") {
            return Err("an empty prefix".to_owned());
        }
        Ok(Self { name: name.to_owned(), prefix })
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_ref() {
            "" => write!(f, "{S3_SCHEME}{}", self.name),
            prefix => write!(f, "{S3_SCHEME}{}/{prefix}", self.name),
        }
    }
}

impl Bucket {
    /// Reads the environment; asks nobody yet.
    pub(super) fn connect(&self) -> Result<Remote, FileError> {
        let path = PathBuf::from(self.to_string());
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&self.name).with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: PAUSE_MIN,
                max_backoff: PAUSE_MAX,
                ..BackoffConfig::default()
            },
            max_retries: RETRIES_MAX,
            ..RetryConfig::default()
        });
        if std::env::var_os("AWS_TIMEOUT").is_none() {
            let key = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
            builder = builder.with_config(key, REQUEST_TIMEOUT);
        }
        let setting = |key: &AmazonS3ConfigKey| builder.get_config_value(key).unwrap_or_default();
        let endpoint = setting(&AmazonS3ConfigKey::Endpoint);
        let allows_http = setting(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)) == "true";
        if endpoint.starts_with("http://") && !allows_http {
            let what = format!("AWS_ENDPOINT_URL is {endpoint}, without TLS: that wants AWS_ALLOW_HTTP=true");
            return Err(file_error(&path, "reach it")(io::Error::other(what)));
        }
        let client = builder.build().map_err(explain).map_err(file_error(&path, "reach it"))?;
        // One thread is enough: it waits for sockets; encryption and checksums are the smaller part of a backup's work.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(file_error(&path, "start a thread for it"))?;
        let connection = Arc::new(Connection { runtime, client, written: Mutex::default() });
        Ok(Remote { path, prefix: self.prefix.clone(), connection })
    }
}

/// What all parts of a backup share.
struct Connection {
    runtime: Runtime,
    client: AmazonS3,
    /// The objects that are whole, and what the server calls their contents.
    written: Mutex<Vec<(String, Option<String>)>>,
}

impl Connection {
    fn wait<T>(&self, answer: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        self.runtime.block_on(answer).map_err(explain)
    }
}

/// A prefix for one backup.
pub(super) struct Remote {
    path: PathBuf,
    prefix: Key,
    connection: Arc<Connection>,
}

impl Remote {
    fn key(&self, name: &str) -> Key {
        self.prefix.clone().join(name)
    }

    /// What the server says about an object; `None` where the bucket is there and the object is not.
    fn look_at(&self, name: &str) -> Result<Option<ObjectMeta>, FileError> {
        let (client, key) = (&self.connection.client, self.key(name));
        let found = self.connection.runtime.block_on(async {
            match client.head(&key).await {
                // The answer to this one says why, that to HEAD has no text.
                Err(
                    Error::NotFound { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. },
                ) => client.get(&key).await.map(|found| found.meta),
                found => found,
            }
        });
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if explain::is_missing_object(&error) => Ok(None),
            Err(error) => Err(file_error(&self.path.join(name), "look at it")(explain(error))),
        }
    }

    /// Whether all that was written is still there as we have written it.
    fn is_intact(&self) -> Result<bool, FileError> {
        let written = self.connection.written.lock().clone();
        for (name, e_tag) in &written {
            if !self.look_at(name)?.is_some_and(|found| same_contents(&found.e_tag, e_tag)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the manifest there is the one that we have just sent: an answer that was lost on its way is asked for
    /// again, and then it is there already.
    fn holds(&self, manifest: &[u8]) -> bool {
        let read = async { self.connection.client.get(&self.key(MANIFEST_FILE)).await?.bytes().await };
        self.connection.wait(read).is_ok_and(|found| found == manifest)
    }

    /// Nothing there is ours alone any more.
    fn mixed(&self) -> ClaimError {
        self.connection.written.lock().clear();
        ClaimError::Mixed { path: self.path.clone() }
    }
}

impl Storage for Remote {
    fn path(&self) -> &Path {
        &self.path
    }

    fn claim(&mut self) -> Result<(), ClaimError> {
        match self.look_at(MANIFEST_FILE)? {
            Some(_) => Err(ClaimError::Whole { path: self.path.clone() }),
            None => Ok(()),
        }
    }

    fn create(&self, name: &str) -> Result<Box<dyn Part>, FileError> {
        Ok(Box::new(upload::Upload::new(Arc::clone(&self.connection), self.key(name), name)))
    }

    fn publish(&self, manifest: &[u8]) -> Result<(), ClaimError> {
        if !self.is_intact()? {
            return Err(self.mixed());
        }
        let (client, key) = (&self.connection.client, self.key(MANIFEST_FILE));
        let path = self.path.join(MANIFEST_FILE);
        let bytes = bytes::Bytes::copy_from_slice(manifest);
        let outcome = self.connection.runtime.block_on(async {
            match client.put_opts(&key, bytes.clone().into(), PutMode::Create.into()).await {
                // A server that knows no conditions, and a user who said so (AWS_CONDITIONAL_PUT=disabled).
                Err(Error::NotImplemented { .. }) => client.put(&key, bytes.into()).await,
                outcome => outcome,
            }
        });
        match outcome {
            Ok(_) => Ok(()),
            Err(Error::AlreadyExists { .. }) if self.holds(manifest) => Ok(()),
            Err(Error::AlreadyExists { .. }) => Err(self.mixed()),
            Err(error) => Err(file_error(&path, "write it")(explain(error)).into()),
        }
    }

    fn clear(&self) {
        let written = std::mem::take(&mut *self.connection.written.lock());
        let client = &self.connection.client;
        self.connection.runtime.block_on(async {
            let delete = async {
                for (name, _) in &written {
                    drop(client.delete(&self.key(name)).await);
                }
            };
            drop(tokio::time::timeout(CLEAR_TIMEOUT, delete).await);
        });
    }

    fn open(&self, name: &str) -> Result<Option<Source>, FileError> {
        let Some(found) = self.look_at(name)? else { return Ok(None) };
        let (path, key, size) = (self.path.join(name), self.key(name), found.size);
        let bytes = Box::new(download::Download::new(Arc::clone(&self.connection), key, size));
        Ok(Some(Source { path, size, bytes }))
    }
}

/// Some servers put the names of contents into quotes in one answer and not in another, or leave them out.
fn same_contents(found: &Option<String>, wanted: &Option<String>) -> bool {
    let bare = |name: &String| name.trim_matches('"').to_owned();
    found.as_ref().map(bare) == wanted.as_ref().map(bare) || found.is_none() || wanted.is_none()
}
