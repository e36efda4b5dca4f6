//! What an answer says of the load of its endpoint: ORCA, Open Request Cost Aggregation.
//!
//! The fields are those of `xds.data.orca.v3.OrcaLoadReport`, the header is that of Envoy, and that it comes in the
//! trailers of gRPC says gRFC A51.

use std::time::Duration;

use http::HeaderMap;

use crate::LoadReport;

mod binary;
mod json;
mod probe;
#[cfg(test)]
mod tests;

pub use self::probe::OrcaProbe;

const TEXT: &str = "endpoint-load-metrics";
const BINARY: &str = "endpoint-load-metrics-bin";
/// What is longer is no report: those of model servers have a few hundred bytes, and whoever sends more would have
/// each answer pay for it.
const LONGEST: usize = 4096;
/// Requests in a second that are taken to have gone well beside those that were counted.
const UNCOUNTED: f64 = 0.5;

impl LoadReport {
    /// Reads the header `endpoint-load-metrics`, or `endpoint-load-metrics-bin` as gRPC has it in its trailers.
    ///
    /// `None` if there is none, or if it says nothing of what is in the table of [`parse`](Self::parse). Never
    /// allocates.
    ///
    /// ```
    /// use palisade_balance::LoadReport;
    ///
    /// let mut headers = http::HeaderMap::new();
    /// assert_eq!(LoadReport::from_headers(&headers), None);
    /// let said = "TEXT cpu_utilization=0.3, named_metrics.in_flight=7";
    /// headers.insert("endpoint-load-metrics", said.parse()?);
    /// let report = LoadReport::from_headers(&headers).expect("it says something");
    /// assert_eq!((report.utilization, report.in_flight), (Some(0.3), Some(7)));
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        // A walk over ten names takes 4 ns, where two look-ups that find nothing take 31.
        headers.keys().find_map(|name| match name.as_str() {
            TEXT => Self::parse(headers.get(name)?.as_bytes()),
            BINARY => binary::parse_base64(bounded(headers.get(name)?.as_bytes())?)?.report(),
            _ => None,
        })
    }

    /// Reads the value of the header: `TEXT cpu_utilization=0.3, ...`, `JSON {"cpu_utilization": 0.3, ...}` or `BIN` and
    /// base64. Without any of these words it is JSON if it begins with a brace, and text otherwise, where a colon may
    /// stand for the equals sign.
    ///
    /// | field | from |
    /// |---|---|
    /// | `utilization` | `application_utilization` unless it is 0, else `cpu_utilization`, else how full the cache of keys and values is: `kv_cache_usage_perc`, `gpu_cache_usage_perc`, `kv_cache_utilization`, `token_usage` |
    /// | `in_flight` | `in_flight` or `server_load`, else the sum of those that run, `num_requests_running`, `num_running_reqs` or `active`, and of those that wait, `num_requests_waiting`, `num_queue_reqs`, `queue_depth` or `queued`: as many as it says, where it says one of both |
    /// | `latency` | `latency_seconds` or `latency_ms` |
    /// | `errors` | `eps`, errors in a second, of `rps_fractional`, requests in a second, or of as many as there were errors, and half a request that nobody counts: one error is not all there is to say where hardly anybody asks |
    ///
    /// These are the names of vLLM, SGLang, TensorRT-LLM and Triton. They may have `named_metrics.` in front or be in
    /// the JSON object of that name, with `vllm:` or the like before them. What is negative, infinite or no number does
    /// not count, JSON and base64 that are broken say nothing at all, and neither does what is longer than 4 KiB.
    ///
    /// ```
    /// use palisade_balance::LoadReport;
    ///
    /// let of_vllm = b"TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=3.0";
    /// let report = LoadReport::parse(of_vllm).expect("it says something");
    /// assert_eq!((report.utilization, report.in_flight), (Some(0.25), Some(3)));
    /// assert_eq!(LoadReport::parse(b"JSON {\"cpu_utilization\": -1}"), None);
    /// ```
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = bounded(value)?.trim_ascii();
        let end = value.iter().position(u8::is_ascii_whitespace);
        let (word, rest) = value.split_at(end.unwrap_or(value.len()));
        let said = if word.eq_ignore_ascii_case(b"TEXT") {
            text(rest)
        } else if word.eq_ignore_ascii_case(b"JSON") {
            json::parse(rest)?
        } else if word.eq_ignore_ascii_case(b"BIN") {
            binary::parse_base64(rest.trim_ascii())?
        } else if value.starts_with(b"{") {
            json::parse(value)?
        } else {
            text(value)
        };
        said.report()
    }
}

impl LoadReport {
    /// The part that were errors, where there are so many of them and so many requests in a second.
    pub(crate) fn error_share(errors: f64, requests: f64) -> f64 {
        // Requests are counted when they come, or only those that go well, and errors when they end: each was a request.
        errors / (requests.max(errors) + UNCOUNTED)
    }
}

fn bounded(value: &[u8]) -> Option<&[u8]> {
    (value.len() <= LONGEST).then_some(value)
}

fn text(value: &[u8]) -> Said {
    let mut said = Said::default();
    for pair in value.split(|&byte| byte == b',') {
        // Envoy had a colon once, which names of vLLM have as well: those come with an equals sign.
        let at = pair.iter().position(|&byte| byte == b'=');
        let at = at.or_else(|| pair.iter().rposition(|&byte| byte == b':'));
        if let Some((name, value)) = at.and_then(|at| pair.split_at_checked(at))
            && let Some(value) = number(&value[1..])
        {
            said.hear(name.trim_ascii(), value);
        }
    }
    said
}

fn number(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// What was said so far, all of it finite and not negative.
#[derive(Debug, Default)]
struct Said {
    application: Option<f64>,
    cpu: Option<f64>,
    cache: Option<f64>,
    in_flight: Option<f64>,
    running: Option<f64>,
    waiting: Option<f64>,
    latency: Option<f64>,
    requests: Option<f64>,
    errors: Option<f64>,
}

impl Said {
    fn hear(&mut self, name: &[u8], value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        let name = name.strip_prefix(b"named_metrics.").unwrap_or(name);
        let colon = name.iter().rposition(|&byte| byte == b':');
        let name = colon.map_or(name, |at| &name[at + 1..]);
        let (field, value) = match name {
            b"application_utilization" | b"applicationUtilization" => {
                (&mut self.application, value)
            }
            b"cpu_utilization" | b"cpuUtilization" => (&mut self.cpu, value),
            b"kv_cache_usage_perc"
            | b"gpu_cache_usage_perc"
            | b"kv_cache_utilization"
            | b"token_usage" => (&mut self.cache, value),
            b"in_flight" | b"server_load" => (&mut self.in_flight, value),
            b"num_requests_running" | b"num_running_reqs" | b"active" => (&mut self.running, value),
            b"num_requests_waiting" | b"num_queue_reqs" | b"queue_depth" | b"queued" => {
                (&mut self.waiting, value)
            }
            b"latency_seconds" => (&mut self.latency, value),
            b"latency_ms" => (&mut self.latency, value / 1e3),
            b"rps_fractional" | b"rpsFractional" => (&mut self.requests, value),
            b"eps" => (&mut self.errors, value),
            _ => return,
        };
        // Minus zero is zero.
        *field = Some(value.abs());
    }

    fn report(self) -> Option<LoadReport> {
        // In the binary form 0 may mean that nobody knows; gRFC A58 goes on to the processor then, too.
        let application = self.application.filter(|&value| value > 0.0);
        let utilization = application.or(self.cpu).or(self.application);
        let known = match (self.running, self.waiting) {
            (None, None) => None,
            (running, waiting) => Some(running.unwrap_or(0.0) + waiting.unwrap_or(0.0)),
        };
        let latency = self.latency.map(Duration::try_from_secs_f64);
        let report = LoadReport {
            // More than there are numbers for is as many as there are.
            in_flight: self.in_flight.or(known).map(|many| many.round() as u32),
            utilization: utilization.or(self.cache),
            latency: latency.and_then(Result::ok),
            errors: self
                .errors
                .zip(self.requests)
                .map(|(errors, requests)| LoadReport::error_share(errors, requests)),
        };
        (report != LoadReport::default()).then_some(report)
    }
}
