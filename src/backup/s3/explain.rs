//! What went wrong with object storage, in one sentence: the server's own code and message where it sent them.

use std::error::Error as _;
use std::io;

use object_store::Error;

/// Without any of these, the role of the machine itself is asked for.
const CREDENTIALS: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Whether the bucket is there and only the object is not.
pub(super) fn is_missing_object(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && !error.to_string().contains("NoSuchBucket")
}

/// The error as the others of a backup are told.
pub(super) fn explain(error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    let has_credentials = CREDENTIALS.iter().any(|name| std::env::var_os(name).is_some());
    let hint = if has_credentials { "" } else { " (no AWS_ACCESS_KEY_ID is set)" };
    io::Error::new(kind, format!("{}{hint}", sentence(&error)))
}

fn sentence(error: &Error) -> String {
    let text = error.to_string();
    let status = between(&text, "non-2xx status code: ", ":");
    let said = match (between(&text, "<Code>", "</Code>"), between(&text, "<Message>", "</Message>")) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (Some(code), None) => Some(code.to_owned()),
        (None, _) => None,
    };
    match (status, said) {
        (Some(status), Some(said)) => format!("the server answers {status}, {said}"),
        (Some(status), None) => format!("the server answers {status}"),
        (None, Some(said)) => format!("the server answers {said}"),
        (None, None) => no_answer(error, &text),
    }
}

/// Nothing came that is an answer of such a server: what was asked, and the cause farthest down.
fn no_answer(error: &Error, text: &str) -> String {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    let cause = cause.map(ToString::to_string).filter(|cause| !text.contains(cause));
    let text = text.strip_prefix("Generic S3 error: ").unwrap_or(text);
    cause.map_or_else(|| text.to_owned(), |cause| format!("{text}: {cause}"))
}

fn between<'a>(text: &'a str, before: &str, behind: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    let found = rest.split_once(behind).map_or(rest, |(found, _)| found).trim();
    (!found.is_empty()).then_some(found)
}
