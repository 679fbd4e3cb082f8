use std::io::Write;

use super::*;
use crate::Dataset;
use proptest::prelude::*;

fn read(csv: &Csv, text: impl AsRef<[u8]>) -> Result<TensorDataset> {
    csv.read_from(text.as_ref(), "f.csv")
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(text).unwrap();
    out.finish().unwrap()
}

#[test]
fn plain_and_gzipped_files_read_alike() {
    let dir = tempfile::tempdir().unwrap();
    let text = b"\xef\xbb\xbf0, 1.5,2,\"3\",7\r\n4,5,-6e-1,0,0\n\n1,1,1,1, 3.0 \n";
    let plain = dir.path().join("a.csv");
    let zipped = dir.path().join("a.csv.gz");
    std::fs::write(&plain, text).unwrap();
    // Two members one after the other are one stream.
    let two = [gzip(&text[..10]), gzip(&text[10..])].concat();
    std::fs::write(&zipped, two).unwrap();
    for path in [plain, zipped] {
        let data = Csv::new().shape([1, 2, 2]).read(path).unwrap();
        assert_eq!(data.len(), 3);
        let x = &data.fields()[0];
        assert_eq!(x.shape(), [3, 1, 2, 2]);
        assert_eq!(
            x.to_vec::<f32>().unwrap()[..7],
            [0., 1.5, 2., 3., 4., 5., -0.6]
        );
        assert_eq!(data.labels(1).unwrap(), [7, 0, 3]);
    }
}

#[test]
fn bad_files_are_errors_that_name_the_place() {
    let plain = Csv::new();
    let header = Csv::new().header(true);
    let cases: [(&Csv, &[u8], ErrorKind, &str); 20] = [
        (&plain, b"", ErrorKind::Data, "the file holds no examples"),
        (
            &plain,
            b"\n\n",
            ErrorKind::Data,
            "the file holds no examples",
        ),
        (
            &header,
            b"a,b\n",
            ErrorKind::Data,
            "the file holds no examples",
        ),
        (
            &plain,
            b"1,2,0\n\n3,1\n",
            ErrorKind::Format,
            "line 3: expected 3 columns, found 2",
        ),
        (
            &header,
            b"a,b\n1,2,0\n",
            ErrorKind::Format,
            "line 2: expected 2 columns, found 3",
        ),
        (
            &plain,
            b"1\n",
            ErrorKind::Format,
            "line 1: expected features and a label, found one column",
        ),
        (
            &plain,
            b"1,x,0",
            ErrorKind::Format,
            "line 1: column 2: `x` is no number",
        ),
        (
            &header,
            b"\n\"a,b\",c,d\n\n1,2,0\n1,\"x\",0\n",
            ErrorKind::Format,
            "line 5: column 2: `x` is no number",
        ),
        (
            &plain,
            b"1,,0",
            ErrorKind::Format,
            "line 1: column 2: the value is missing",
        ),
        (
            &plain,
            b"1,\xff,0",
            ErrorKind::Format,
            "line 1: column 2: the value is not UTF-8",
        ),
        (
            &plain,
            b"1,2,0\nNaN,2,0",
            ErrorKind::Data,
            "line 2: column 1: `NaN` is not a finite number",
        ),
        (
            &plain,
            b"1,-inf,0",
            ErrorKind::Data,
            "line 1: column 2: `-inf` is not a finite number",
        ),
        (
            &plain,
            b"1e39,2,0",
            ErrorKind::Data,
            "line 1: column 1: `1e39` is too large for f32",
        ),
        (
            &plain,
            b"1,2,0.5",
            ErrorKind::Data,
            "line 1: column 3: label `0.5` is no integer",
        ),
        (
            &plain,
            b"1,2,inf",
            ErrorKind::Data,
            "line 1: column 3: label `inf` is no integer",
        ),
        (
            &plain,
            b"1,2,-1",
            ErrorKind::Data,
            "line 1: column 3: label -1 is negative",
        ),
        (
            &plain,
            b"1,2,cat",
            ErrorKind::Format,
            "line 1: column 3: `cat` is no number",
        ),
        (
            &Csv::new().classes(10),
            b"1,2,10",
            ErrorKind::Data,
            "line 1: column 3: label 10 is not in 0..10",
        ),
        (
            &Csv::new().shape([1, 3]),
            b"1,2,1",
            ErrorKind::Shape,
            "line 1: shape [1, 3] needs 3 feature columns, found 2",
        ),
        (
            &Csv::new().limit(5),
            b"1,2,1\n",
            ErrorKind::Format,
            "line 1: the text is longer than the limit of 5 bytes",
        ),
    ];
    for (csv, text, kind, message) in cases {
        let error = read(csv, text).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (kind, format!("f.csv: {message}"))
        );
    }
    assert!(read(&Csv::new().limit(6), "1,2,1\n").is_ok());
    assert!(read(&Csv::new().shape([usize::MAX, 2]), "1,2,1\n").is_err());
}

#[test]
fn damaged_gzip_streams_are_errors() {
    let good = gzip(b"1,2,0\n3,4,1\n");
    assert_eq!(read(&Csv::new(), &good).unwrap().len(), 2);
    for cut in 2..good.len() {
        let error = read(&Csv::new(), &good[..cut]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format, "cut at {cut}: {error}");
    }
    let mut flipped = good.clone();
    let at = good.len() - 6;
    flipped[at] ^= 1;
    assert_eq!(
        read(&Csv::new(), &flipped).unwrap_err().kind(),
        ErrorKind::Format
    );
}

#[test]
fn a_stream_that_expands_without_end_stops_at_the_limit() {
    let bomb = gzip(&b"1,2,0\n".repeat(100_000));
    assert!(bomb.len() < 10_000);
    let error = read(&Csv::new().limit(10_000), bomb).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("longer than the limit of 10000 bytes")
    );
}

#[test]
fn files_that_are_missing_or_misnamed_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.csv");
    let error = Csv::new().read(&missing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error
            .to_string()
            .starts_with(&missing.display().to_string())
    );
    let path = dir.path().join("plain.csv.gz");
    std::fs::write(&path, "1,2,0\n").unwrap();
    let error = Csv::new().read(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Format);
    assert!(error.to_string().ends_with("holds no gzip stream"));
    assert!(Csv::new().read(dir.path()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), gz: bool) {
        if gz {
            bytes.splice(0..0, [0x1f, 0x8b]);
        }
        let _ = read(&Csv::new(), &bytes);
        let _ = read(&Csv::new().header(true).shape([2]), &bytes);
    }

    #[test]
    fn what_is_written_is_read(
        rows in prop::collection::vec((any::<[f32; 3]>(), 0i64..1000), 1..20)
    ) {
        let finite = |x: f32| if x.is_finite() { x } else { 0.0 };
        let text: String = rows
            .iter()
            .map(|(x, l)| format!("{},{:e},{},{l}\n", finite(x[0]), finite(x[1]), finite(x[2])))
            .collect();
        let data = read(&Csv::new(), &text).unwrap();
        let expected: Vec<f32> = rows.iter().flat_map(|(x, _)| x.map(finite)).collect();
        prop_assert_eq!(data.fields()[0].to_vec::<f32>().unwrap(), expected);
        let labels: Vec<i64> = rows.iter().map(|(_, l)| *l).collect();
        prop_assert_eq!(data.labels(1).unwrap(), labels);
    }
}

/// The features as text, so that NaN can be compared.
fn features(data: &TensorDataset) -> String {
    format!("{:?}", data.fields()[0].to_vec::<f32>().unwrap())
}

const TABLE: &str = "name,\"size, cm\",kind,weight\n\
                     a,1,\"x, y\",10\n\
                     b,NA,z,20\n\
                     c,3,?,30.5\n\
                     \"d\"\"d\",4,\"x, y\",40\n";

fn table() -> Csv {
    Csv::new()
        .header(true)
        .missing(["NA", "?"])
        .category("kind")
}

#[test]
fn columns_are_chosen_by_name_and_index() {
    let csv = table().skip("name").targets(["weight"]);
    let read_table = csv.read_table_from(TABLE.as_bytes(), "t").unwrap();
    let (data, schema) = (&read_table.data, &read_table.schema);
    assert_eq!(features(data), "[1.0, 0.0, NaN, 1.0, 3.0, NaN, 4.0, 0.0]");
    assert_eq!(data.fields()[1].shape(), [4, 1]);
    assert_eq!(data.fields()[1].to_f64s(), [10., 20., 30.5, 40.]);
    assert_eq!(schema.features[0].name.as_deref(), Some("size, cm"));
    assert_eq!(
        schema.features[1].categories.as_ref().unwrap(),
        &["x, y", "z"]
    );
    assert_eq!(schema.targets[0].name.as_deref(), Some("weight"));

    // The label is text, and targets come in the order in which they are asked for.
    let csv = table().label(0).category("name").skip(2);
    let csv = Csv {
        categories: vec!["name".into()],
        ..csv
    };
    let labelled = csv.read_table_from(TABLE.as_bytes(), "t").unwrap();
    assert_eq!(labelled.data.labels(1).unwrap(), [0, 1, 2, 3]);
    let names = labelled.schema.targets[0].categories.as_ref().unwrap();
    assert_eq!(names, &["a", "b", "c", "d\"d"]);
    let two = Csv::new().targets([2, 0]);
    let two = read(&two, "1,2,3\n4,5,6\n").unwrap();
    assert_eq!(two.fields()[0].to_f64s(), [2., 5.]);
    assert_eq!(two.fields()[1].to_f64s(), [3., 1., 6., 4.]);
    let only = read(&Csv::new().features_only().delimiter(b';'), "1;2\n").unwrap();
    assert_eq!(
        (only.fields().len(), only.fields()[0].shape()),
        (1, &[1, 2][..])
    );
}

#[test]
fn categories_are_sorted_and_a_schema_fixes_them() {
    let csv = Csv::new().category(0).category(2);
    let train = csv
        .read_table_from(&b"red,1,no\nblue,2,yes\nred,3,maybe\n"[..], "t")
        .unwrap();
    assert_eq!(features(&train.data), "[1.0, 1.0, 0.0, 2.0, 1.0, 3.0]");
    assert_eq!(train.data.labels(1).unwrap(), [1, 2, 0]);
    let fixed = csv.clone().schema(train.schema.clone());
    let test = fixed.read_table_from(&b"red,9,yes\n"[..], "t").unwrap();
    assert_eq!(features(&test.data), "[1.0, 9.0]");
    assert_eq!(test.data.labels(1).unwrap(), [2]);
    assert_eq!(test.schema, train.schema);
    // Categories follow the schema even where `category` is not called.
    let bare = Csv::new().features_only().schema(train.schema.clone());
    assert_eq!(features(&read(&bare, "blue,9\n").unwrap()), "[0.0, 9.0]");
    let error = read(&fixed, "red,1,no\ngreen,9,yes\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "f.csv: line 2: column 1: `green` is none of the known categories"
    );
    let lenient = fixed.clone().unknown_as_missing(true);
    let data = read(&lenient, "green,9,yes\n").unwrap();
    assert!(data.has_missing());
    let error = read(&lenient, "red,9,never\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    let error = read(&fixed, "red,1,2,no\n").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("expected 2 feature columns by the schema")
    );
    let error = read(&csv.clone().classes(2), "a,1,x\na,1,y\na,1,z\n").unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("the label has 3 categories, not 2")
    );
    let named = |text: &str| {
        Csv::new()
            .header(true)
            .read_table_from(text.as_bytes(), "t")
    };
    let schema = named("a,b,y\n1,2,0\n").unwrap().schema;
    let error = read(&Csv::new().header(true).schema(schema), "a,c,y\n1,2,0\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "f.csv: line 1: column 2: expected column `b` by the schema, found `c`"
    );
}

#[test]
fn options_that_do_not_fit_are_errors() {
    let header = Csv::new().header(true);
    let cases = [
        (
            header.clone().label("z"),
            "line 1: no column `z`; the file has a, b, b",
        ),
        (
            header.clone().label("b"),
            "line 1: two columns have the name `b`; select one by its index",
        ),
        (
            Csv::new().skip("a"),
            "line 1: column `a` needs names, but the file is read without a header; call \
             `Csv::header(true)`",
        ),
        (
            header.clone().skip(3),
            "line 1: no column of index 3: the file has 3 columns",
        ),
        (
            header.clone().skip(2),
            "line 1: column `b` is skipped, and the label or a target",
        ),
        (
            Csv::new().targets([1, 1]),
            "line 1: column 2 is a target twice",
        ),
        (
            Csv::new().targets([1]).category(1),
            "line 1: column 2 is to hold categories, but it is no feature and no label",
        ),
        (
            Csv::new().skip(0).skip(1),
            "line 1: none of the 3 columns is a feature",
        ),
        (Csv::new().delimiter(b'"'), "'\"' cannot be the delimiter"),
    ];
    for (csv, message) in cases {
        let error = read(&csv, "a,b,b\n1,2,0\n").unwrap_err();
        assert_eq!(error.to_string(), format!("f.csv: {message}"));
    }
    for (csv, text, message) in [
        (
            Csv::new().missing(["NA"]),
            "1,2,NA\n",
            "line 1: column 3: the value is missing; labels and targets have to be there",
        ),
        (
            Csv::new().missing(["NA"]),
            "1,,0\n",
            "line 1: column 2: the value is missing",
        ),
        (
            Csv::new().category(0),
            "a,1,0\n,2,0\n",
            "line 2: column 1: the value is missing; name the empty text in `Csv::missing`",
        ),
    ] {
        let error = read(&csv, text).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::Format, format!("f.csv: {message}"))
        );
    }
}

/// A cell as RFC 4180 writes any text.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_text_in_quotes_is_read_back(
        rows in prop::collection::vec(("[a-c,;\"\r\n é]{0,6}", 0i64..5), 1..12),
        gz: bool,
    ) {
        // A category is what is not blank.
        let rows: Vec<(String, i64)> = rows.into_iter().map(|(t, l)| (format!("x{t}"), l)).collect();
        let text: String = rows.iter().map(|(t, l)| format!(" {} ,{l}\r\n", quoted(t))).collect();
        let bytes = if gz { gzip(text.as_bytes()) } else { text.into_bytes() };
        let csv = Csv::new().category(0);
        let table = csv.read_table_from(&bytes[..], "f.csv").unwrap();
        let names = table.schema.features[0].categories.as_ref().unwrap();
        prop_assert!(names.is_sorted());
        let codes = table.data.fields()[0].to_f64s();
        for ((text, label), (code, found)) in rows.iter().zip(codes.iter().zip(table.data.labels(1).unwrap())) {
            prop_assert_eq!(&names[*code as usize], text);
            prop_assert_eq!(label, found);
        }
    }

    #[test]
    fn a_table_is_read_again_with_its_own_schema(
        text in "[ab1,\"\n ?]{0,60}",
    ) {
        let csv = Csv::new().category(0).label(1).missing(["", "?"]);
        if let Ok(table) = csv.read_table_from(text.as_bytes(), "f.csv") {
            let again = csv.schema(table.schema.clone()).read_table_from(text.as_bytes(), "f.csv").unwrap();
            prop_assert_eq!(again.schema, table.schema);
            prop_assert_eq!(features(&again.data), features(&table.data));
        }
    }
}
