//! A profile as trace events: "Trace Event Format" (Google, 2016), which Perfetto reads too.

use serde_json::{Value, json};

use super::Profile;

pub(super) fn events(profile: &Profile) -> String {
    let mut events = vec![json!({
        "ph": "M", "name": "process_name", "pid": 1, "tid": 1,
        "args": {"name": format!("{}, {} threads", profile.backend, profile.threads)},
    })];
    let us = |ns: u64| ns as f64 / 1e3;
    let mut start = 0u64;
    for step in &profile.steps {
        let mut event = json!({
            "ph": "X", "name": step.kernel, "cat": "step", "pid": 1, "tid": 1,
            "ts": us(start), "dur": us(step.time.median_ns),
            "args": {
                "nodes": step.nodes,
                "min_us": us(step.time.min_ns),
                "macs": step.macs,
                "elements": step.elements,
                "read_bytes": step.read_bytes,
                "written_bytes": step.written_bytes,
            },
        });
        for (name, rate) in [
            ("GFLOP/s", step.gflops()),
            ("GB/s", step.gigabytes_per_second()),
        ] {
            if let Some(rate) = rate {
                event["args"][name] = Value::from(rate);
            }
        }
        events.push(event);
        start = start.saturating_add(step.time.median_ns);
    }
    json!({"displayTimeUnit": "ns", "traceEvents": events}).to_string()
}
