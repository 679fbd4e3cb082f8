use super::*;

fn step(kernel: &str, nodes: &[&str], median: u64, min: u64) -> StepProfile {
    let nodes = nodes.iter().map(|n| n.to_string()).collect();
    let mut step = StepProfile::new(Step::new(kernel, nodes));
    step.time = Time {
        median_ns: median,
        min_ns: min,
    };
    step
}

fn profile() -> Profile {
    let cost = |macs, elements| Cost { macs, elements };
    Profile {
        backend: "test".into(),
        threads: 2,
        runs: 4,
        total: Time {
            median_ns: 10_000,
            min_ns: 9_000,
        },
        outside: Time {
            median_ns: 500,
            min_ns: 400,
        },
        steps: vec![
            step("matmul", &["fc1"], 2_000, 1_800)
                .bytes(3_000, 1_000)
                .cost(cost(20_000, 0)),
            step("relu+mul", &["a\"\n", "b", "c"], 1_500, 1_400)
                .bytes(100, 50)
                .cost(cost(0, 300)),
            step("matmul", &["fc2"], 6_000, 5_000)
                .bytes(500, 100)
                .cost(cost(60_000, 7)),
            step("copy", &[], 0, 0),
        ],
    }
}

#[test]
fn medians_and_minima() {
    let of = |mut samples: Vec<u64>| {
        let time = Time::of(&mut samples);
        (time.median_ns, time.min_ns)
    };
    assert_eq!(of(vec![]), (0, 0));
    assert_eq!(of(vec![7]), (7, 7));
    assert_eq!(of(vec![9, 1, 4]), (4, 1));
    assert_eq!(of(vec![9, 2, 1, 5]), (3, 1));
    assert_eq!(of(vec![u64::MAX, u64::MAX]), (u64::MAX, u64::MAX));
}

#[test]
fn kernels_add_up() {
    let kernels = profile().by_kernel();
    let names: Vec<_> = kernels.iter().map(|k| (&k.kernel[..], k.steps)).collect();
    assert_eq!(names, [("matmul", 2), ("relu+mul", 1), ("copy", 1)]);
    let matmul = &kernels[0];
    assert_eq!((matmul.time.median_ns, matmul.time.min_ns), (8_000, 6_800));
    assert_eq!((matmul.macs, matmul.elements), (80_000, 7));
    assert_eq!((matmul.read_bytes, matmul.written_bytes), (3_500, 1_100));
}

#[test]
fn rates_need_time_and_work() {
    let steps = profile().steps;
    // 20,000 multiply-adds are 40,000 operations, in 2,000 ns.
    assert_eq!(steps[0].gflops(), Some(20.0));
    assert_eq!(steps[0].gigabytes_per_second(), Some(2.0));
    assert_eq!(steps[1].gflops(), None);
    assert_eq!(steps[3].gigabytes_per_second(), None);
}

#[test]
fn the_table_is_sorted_by_time() {
    let table = profile().to_string();
    let expected = "\
test, 2 threads: 10.0 us a run (median of 4, shortest 9.0), 4 steps
 us   share  min us  GFLOP/s  GB/s  kernel                  nodes
6.0  60.0 %     5.0     20.0   0.1  matmul                  fc2
2.0  20.0 %     1.8     20.0   2.0  matmul                  fc1
1.5  15.0 %     1.4        -   0.1  relu+mul                a\"\u{fffd} +2
0.0   0.0 %     0.0        -     -  copy
0.5   5.0 %     0.4        -     -  (outside of the steps)
";
    assert_eq!(table, expected);
    let short = profile().by_kernel_table(1);
    let lines: Vec<&str> = short.lines().skip(2).collect();
    assert_eq!(lines.len(), 3, "{short}");
    assert!(lines[0].starts_with("8.0  80.0 %"), "{short}");
    assert!(lines[0].ends_with("matmul                  2"), "{short}");
    assert!(lines[1].starts_with("1.5  15.0 %"), "{short}");
    assert!(lines[1].ends_with("(2 more)"), "{short}");
}

#[test]
fn long_names_are_cut_between_characters() {
    let mut profile = profile();
    profile.steps[0].kernel = "ü".repeat(41);
    profile.steps[2].kernel = "ü".repeat(40);
    let table = profile.to_string();
    assert!(
        table.contains(&format!(" {}…  ", "ü".repeat(39))),
        "{table}"
    );
    assert!(table.contains(&format!(" {}  ", "ü".repeat(40))), "{table}");
}

#[test]
fn traces_are_complete_events_one_after_the_other() {
    let trace = profile().to_chrome_trace();
    let trace: serde_json::Value = serde_json::from_str(&trace).unwrap();
    let events: Vec<_> = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["ph"] == "X")
        .collect();
    let of =
        |field: &str| -> Vec<f64> { events.iter().map(|e| e[field].as_f64().unwrap()).collect() };
    assert_eq!(of("ts"), [0.0, 2.0, 3.5, 9.5]);
    assert_eq!(of("dur"), [2.0, 1.5, 6.0, 0.0]);
    assert_eq!(events[1]["name"], "relu+mul");
    let args = &events[1]["args"];
    assert_eq!(args["nodes"], serde_json::json!(["a\"\n", "b", "c"]));
    assert_eq!(
        (&args["macs"], &args["read_bytes"]),
        (&0.into(), &100.into())
    );
    assert_eq!(events[0]["args"]["GFLOP/s"], 20.0);
    assert!(args.get("GFLOP/s").is_none());
}

#[test]
fn json_comes_back() {
    let text = serde_json::to_string(&profile()).unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), profile());
    assert!(serde_json::from_str::<Profile>(r#"{"backend": "x"}"#).is_err());
}

#[test]
fn runs_are_split_into_steps_and_the_rest() {
    let steps = vec![step("a", &[], 0, 0), step("b", &[], 0, 0)];
    let options = ProfileOptions::new().runs(3);
    let mut recorder = Recorder::new("test", 1, steps, &options).unwrap();
    let nap = || std::thread::sleep(std::time::Duration::from_millis(2));
    for _ in 0..options.runs {
        recorder.begin();
        recorder.mark();
        nap();
        recorder.mark();
        recorder.mark();
        // A step too many is outside of the steps.
        nap();
        recorder.mark();
        nap();
        recorder.end();
    }
    let profile = recorder.finish();
    let [a, b] = &profile.steps[..] else {
        panic!("{profile:?}");
    };
    assert_eq!(profile.runs, 3);
    assert!(a.time.min_ns >= 2_000_000, "{profile:?}");
    assert!(b.time.min_ns < a.time.min_ns, "{profile:?}");
    assert!(profile.outside.min_ns >= 4_000_000, "{profile:?}");
    assert!(
        profile.total.min_ns >= a.time.min_ns + b.time.min_ns + profile.outside.min_ns,
        "{profile:?}"
    );

    let none = Recorder::new("test", 1, vec![], &ProfileOptions::new().runs(0));
    let error = none.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::InvalidArgument);
    assert!(error.message().contains("1 timed run"), "{error}");
}
