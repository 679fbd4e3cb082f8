//! Any bytes as comma-separated values, plain or gzipped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opt_data::Csv;

fuzz_target!(|bytes: &[u8]| {
    let numbers = Csv::new().limit(1 << 20);
    let text = numbers
        .clone()
        .header(true)
        .category(0)
        .label(1)
        .missing(["", "NA"]);
    let _ = numbers.read_from(bytes, "numbers");
    if let Ok(table) = text.read_table_from(bytes, "text") {
        // What a table gives is what its own schema reads again.
        let again = text
            .schema(table.schema.clone())
            .read_table_from(bytes, "again");
        assert_eq!(again.expect("the same file").schema, table.schema);
    }
});
