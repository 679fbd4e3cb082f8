//! The guide's program runs, and the guide shows it as it is.

#[path = "../guide.rs"]
#[allow(dead_code, unreachable_pub)]
mod program;

#[test]
fn the_whole_case_runs() {
    let folder = tempfile::tempdir().unwrap();
    let table = program::guide(3, folder.path()).unwrap();
    let [teacher, .., last] = table.rows() else {
        panic!("{table}");
    };
    assert_eq!(table.rows().len(), 5);
    assert!(teacher.accuracy.unwrap() > 0.8, "{table}");
    assert!(last.macs * 9 < teacher.macs && last.bytes * 10 < teacher.bytes);
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("int8 by training"));
    let model = folder.path().join("int8-by-training.onnx");
    opt_onnx::Importer::new().load(model).unwrap();
}

#[test]
fn the_guide_shows_the_program() {
    let program = include_str!("../guide.rs");
    let guide = include_str!("../../docs/GUIDE.md");
    let mut at = 0;
    let mut blocks = 0;
    for block in guide.split("```rust\n").skip(1) {
        let code = block.split("\n```").next().unwrap();
        let found = program[at..].find(code);
        let found = found.unwrap_or_else(|| panic!("not in the program, in this order:\n{code}"));
        at += found + code.len();
        blocks += 1;
    }
    assert!(blocks > 10);
}
