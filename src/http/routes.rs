//! What each path answers.

use std::fmt::Write as _;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;

use super::collect::{self, Collector};
use crate::status::{Role, ShardStatus, View};
use crate::units;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

/// What the routes show.
pub struct Context {
    view: Arc<View>,
    collector: Collector,
    recorder: PrometheusHandle,
}

impl Context {
    /// Shows `view`, and what `collector` publishes to `recorder`.
    #[must_use]
    pub fn new(view: Arc<View>, collector: Collector, recorder: PrometheusHandle) -> Self {
        Self { view, collector, recorder }
    }

    /// Folds histogram samples, so that they do not pile up between scrapes.
    pub(super) fn upkeep(&self) {
        self.recorder.run_upkeep();
    }
}

struct Answer {
    code: StatusCode,
    kind: &'static str,
    body: String,
}

impl Answer {
    fn text(code: StatusCode, body: impl Into<String>) -> Self {
        Self { code, kind: TEXT, body: body.into() }
    }

    fn when(condition: bool, yes: &str, no: impl Into<String>) -> Self {
        if condition {
            Self::text(StatusCode::OK, yes)
        } else {
            Self::text(StatusCode::SERVICE_UNAVAILABLE, no)
        }
    }
}

pub(super) fn answer(context: &Context, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let known_method = matches!(*request.method(), Method::GET | Method::HEAD);
    let answer = if known_method {
        route(context, request.uri().path(), request.uri().query().unwrap_or(""))
    } else {
        Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !known_method {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn route(context: &Context, path: &str, query: &str) -> Answer {
    let view = &context.view;
    match path {
        "/metrics" => {
            context.collector.publish(view);
            let histogram = view.clients().map(|clients| collect::histogram(clients)).unwrap_or_default();
            let text = collect::with_cpu_counter(context.recorder.render());
            Answer { code: StatusCode::OK, kind: METRICS, body: text + &histogram }
        }
        "/livez" => Answer::text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(view, parameter(query, "verbose").is_some()),
        // Load balancers send writes where this holds; reads are `/readyz`'s matter.
        "/leader" => {
            if let (Role::Leader, Some(error)) = (view.role(), lacks_space(view)) {
                let why = format!("leader, and its log has no space: {error}\n");
                return Answer::text(StatusCode::SERVICE_UNAVAILABLE, why);
            }
            let leads = view.role() == Role::Leader
                && view.store().is_some_and(|store| !store.is_regaining())
                && !view.stop.is_set()
                && view.links.superseded_by_epoch().is_none();
            Answer::when(leads, "leader\n", format!("{}\n", view.role().as_str()))
        }
        "/follower" => follower(view, parameter(query, "max_lag")),
        "/status" => match serde_json::to_string(&view.status()) {
            Ok(body) => Answer { code: StatusCode::OK, kind: JSON, body: body + "\n" },
            Err(error) => Answer::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/" => Answer::text(
            StatusCode::OK,
            "/metrics\n/livez\n/readyz?verbose\n/leader\n/follower?max_lag=1s\n/status\n",
        ),
        _ => Answer::text(StatusCode::NOT_FOUND, "no such path; / lists them\n"),
    }
}

/// Why the store's log takes no changes for the time being.
fn lacks_space(view: &View) -> Option<String> {
    view.store().and_then(|store| store.log_lacks_space())
}

/// The value of a query parameter; empty if it has none.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

fn ready(view: &View, verbose: bool) -> Answer {
    let status = view.status();
    let mut lines = String::new();
    check(&mut lines, "store", view.store().is_some(), "open", "waiting for the leader or still opening");
    check(&mut lines, "process", !view.stop.is_set(), "running", "stopping");
    if let Some(epoch) = status.superseded_by_epoch {
        check(&mut lines, "epoch", false, "", &format!("{epoch} has another leader"));
    }
    for shard in &status.shards {
        let state = shard_state(shard);
        check(&mut lines, &format!("shard {}", shard.shard), shard.ready, &state, &state);
    }
    if let Some(error) = lacks_space(view) {
        // It answers reads: it is to be mended, not to be left out.
        lines += &format!("[!]log has no space: {error}; writes are refused\n");
    }
    let verdict = if status.ready { "ready\n" } else { "not ready\n" };
    let body = if verbose || !status.ready { lines + verdict } else { verdict.to_owned() };
    Answer::when(status.ready, &body, body.as_str())
}

fn check(lines: &mut String, name: &str, holds: bool, good: &str, bad: &str) {
    let (mark, state, word) = if holds { ('+', good, "ok") } else { ('-', bad, "failed") };
    writeln!(lines, "[{mark}]{name} {state} {word}").expect("a String takes all that is written to it");
}

fn shard_state(shard: &ShardStatus) -> String {
    let phase = match shard.phase.as_str() {
        "stream" => "streaming",
        phase => phase,
    };
    let state = match &shard.scan {
        Some(scan) if shard.reason.is_empty() => {
            format!("{phase} ({} of {} slots)", scan.slots, scan.slots_total)
        }
        _ if shard.reason.is_empty() => phase.to_owned(),
        _ => format!("{phase} ({})", shard.reason),
    };
    if shard.inconsistent { format!("{state} inconsistent") } else { state }
}

fn follower(view: &View, max_lag: Option<&str>) -> Answer {
    let lag_max = match max_lag.map(units::parse_duration).transpose() {
        Ok(lag_max) => lag_max,
        Err(error) => return Answer::text(StatusCode::BAD_REQUEST, format!("max_lag: {error}\n")),
    };
    if view.role() != Role::Follower {
        return Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", view.role().as_str()));
    }
    let status = view.status();
    let late = |shard: &&ShardStatus| {
        !shard.ready
            || lag_max.is_some_and(|max| shard.phase != "stream" || shard.lag_seconds > max.as_secs_f64())
    };
    if !status.ready {
        return Answer::text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n");
    }
    match status.shards.iter().find(late) {
        None => Answer::text(StatusCode::OK, "follower\n"),
        Some(shard) => Answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("shard {} {}, {:.3} s behind\n", shard.shard, shard_state(shard), shard.lag_seconds),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{ShardStatus, check, parameter, shard_state};

    /// Ready is a shard that was in sync once, also while a later scan fills it: the line says which it is.
    #[test]
    fn a_shards_line_names_its_phase_also_where_it_is_ready() {
        let shard = |phase: &str, scan: serde_json::Value, inconsistent: bool| {
            let status = serde_json::json!({
                "shard": 3, "seq": 9, "epoch": 1, "phase": phase, "reason": "", "applied_seq": 7, "leader_seq": 9,
                "lag_records": 2, "lag_seconds": 0.5, "inconsistent": inconsistent, "ready": true, "slots_used": 5,
                "slots_deleted": 0, "slots_formatted": 10, "file_bytes": 4096, "scan": scan,
            });
            let shard: ShardStatus = serde_json::from_value(status).expect("a status");
            let (mut lines, state) = (String::new(), shard_state(&shard));
            check(&mut lines, "shard 3", shard.ready, &state, &state);
            lines
        };
        let scan = serde_json::json!({ "since": 4, "slots": 5, "slots_total": 10 });
        assert_eq!(shard("scan", scan, true), "[+]shard 3 scan (5 of 10 slots) inconsistent ok\n");
        assert_eq!(shard("stream", serde_json::Value::Null, false), "[+]shard 3 streaming ok\n");
        assert_eq!(shard("connecting", serde_json::Value::Null, false), "[+]shard 3 connecting ok\n");
    }

    #[test]
    fn query_parameters_are_found_by_their_whole_name() {
        assert_eq!(parameter("verbose", "verbose"), Some(""));
        assert_eq!(parameter("a=1&max_lag=1s", "max_lag"), Some("1s"));
        assert_eq!(parameter("xmax_lag=1s", "max_lag"), None);
        assert_eq!(parameter("", "verbose"), None);
    }
}
