//! Ways to quantize a sentence encoder, against each other:
//! `cargo xtask minilm` and then `cargo run --release --example quantize_minilm`.
//! `cargo xtask minilm-compare` puts other tools beside it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use opt_core::file::write_atomically;
use opt_core::{Backend, Context, Error, Graph, Pass, Pipeline, Result, Tensor};
use opt_data::{Dataset, TensorDataset};
use opt_examples::{BackendArgs, arrays, load, matching, print, run};
use opt_onnx::Exporter;
use opt_quant::{
    Awq, Gptq, Hqq, Method, Nearest, QuantizeDynamic, QuantizeStatic, QuantizeWeights, Rules,
    Samples, Scheme, Select, SmoothQuant,
};

/// Quantizes all-MiniLM-L6-v2 in several ways and compares sentence embeddings.
#[derive(Debug, Parser)]
struct Args {
    /// Where `model.onnx`, `calibration.npz` and `evaluation.npz` are.
    #[arg(default_value = "target/minilm")]
    folder: PathBuf,
    /// Only the rows whose names contain one of these, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Keeps the quantized models in this folder, and in `seconds.json` what each took.
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
}

/// A way to quantize the model.
struct Recipe {
    name: &'static str,
    pass: Box<dyn Pass>,
}

impl Recipe {
    fn new(name: &'static str, pass: impl Pass + 'static) -> Recipe {
        let pass = Box::new(pass);
        Recipe { name, pass }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    run(|| command(&args))
}

/// All rows of the table.
fn recipes() -> Vec<Recipe> {
    let samples = || Samples::new().mask("attention_mask");
    let weights =
        |name, scheme, method: Method| Recipe::new(name, four_bits(scheme).method(method));
    let (int4, uint4) = (Scheme::int4(), Scheme::uint4());
    let gptq = || Gptq::new().samples(samples());
    let mut recipes = eight_bits();
    recipes.extend([
        weights("int4 nearest", int4, Nearest::new().into()),
        weights("uint4 nearest", uint4, Nearest::new().into()),
        weights("uint4 searched", uint4, Nearest::new().search().into()),
        weights("uint4 hqq", uint4, Hqq::new().into()),
        weights("uint4 awq", uint4, Awq::new().samples(samples()).into()),
        weights("int4 gptq", int4, gptq().into()),
        weights("uint4 gptq", uint4, gptq().into()),
        weights("uint4 gptq act-order", uint4, gptq().act_order().into()),
        Recipe::new(
            "uint4 gptq embeddings too",
            QuantizeWeights::new(uint4)
                .method(gptq().act_order())
                .half_scales(),
        ),
        weights(
            "uint4 gptq sequential",
            uint4,
            gptq().act_order().sequential().into(),
        ),
        weights(
            "nf4 nearest",
            Scheme::nf4().group(32),
            Nearest::new().into(),
        ),
        weights("nf4 gptq", Scheme::nf4().group(32), gptq().into()),
    ]);
    recipes
}

/// 8-bit weights, embeddings and activations.
fn eight_bits() -> Vec<Recipe> {
    let dynamic = || Pipeline::new().then(QuantizeDynamic::recommended());
    let fixed = || {
        Pipeline::new()
            .then(QuantizeStatic::new())
            .then(QuantizeWeights::int8().half_scales())
    };
    let smooth = || SmoothQuant::new().with_multiplications();
    vec![
        Recipe::new("int8 dynamic", dynamic()),
        Recipe::new(
            "int8 dynamic smoothed",
            Pipeline::new().then(smooth().alpha(0.5)).then(dynamic()),
        ),
        Recipe::new("int8 static", fixed()),
        Recipe::new(
            "int8 static smoothed",
            Pipeline::new().then(smooth()).then(fixed()),
        ),
        Recipe::new("int8 weights", QuantizeWeights::int8().half_scales()),
        Recipe::new("int8 weights searched", searched(Scheme::int8())),
        Recipe::new("int8 weights group 32", searched(Scheme::int8().group(32))),
    ]
}

/// Weights alone, in ranges of the least squared error.
fn searched(scheme: Scheme) -> QuantizeWeights {
    let embeddings = Rules::new().apply(Select::contains("embeddings"), Scheme::int8());
    let method = Nearest::new().search();
    let pass = QuantizeWeights::new(scheme).method(method);
    pass.rules(embeddings).half_scales()
}

/// 4-bit weights of linear layers in groups of 32, and 8-bit embeddings.
fn four_bits(scheme: Scheme) -> QuantizeWeights {
    let embeddings = Rules::new().apply(Select::contains("embeddings"), Scheme::int8());
    QuantizeWeights::new(scheme).rules(embeddings).half_scales()
}

fn command(args: &Args) -> Result<()> {
    let model = args.folder.join("model.onnx");
    let start = Instant::now();
    let graph = load(&model, &[])?;
    let loading = start.elapsed().as_secs_f64();
    let calibration = examples(&graph, &args.folder.join("calibration.npz"))?;
    let evaluation = examples(&graph, &args.folder.join("evaluation.npz"))?;
    let backend = args.backend.build()?;
    let float = embeddings(&graph, &evaluation, &*backend)?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "method",
        "mean cosine",
        "lowest",
        "neighbour kept",
        "mean square error",
        "bytes",
        "seconds",
    ]);
    let bytes = std::fs::metadata(&model)?.len();
    let mut add = |name: &str, found: &Comparison, bytes: u64, seconds: f64| {
        table.add_row([
            name.to_string(),
            format!("{:.5}", found.cosine),
            format!("{:.5}", found.lowest),
            format!("{:.1} %", 100.0 * found.kept),
            format!("{:.3e}", found.error),
            bytes.to_string(),
            format!("{seconds:.1}"),
        ]);
    };
    add("float", &Comparison::of(&float, &float), bytes, 0.0);
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|o| name.contains(o));
    let chosen: Vec<Recipe> = recipes().into_iter().filter(|r| wanted(r.name)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = recipes().iter().map(|r| r.name).collect();
        return Err(Error::invalid(format!("`--only` names none of {names:?}")));
    }
    let scratch = args.folder.join("quantized");
    let folder = args.out.as_deref().unwrap_or(&scratch);
    std::fs::create_dir_all(folder)?;
    let mut times = Vec::new();
    for recipe in chosen {
        let start = Instant::now();
        let mut cx = Context::new()
            .with_backend(&*backend)
            .with_calibration(&calibration);
        let (quantized, _) = recipe.pass.apply(graph.clone(), &mut cx)?;
        let file = folder.join(format!("{}.onnx", recipe.name.replace(' ', "-")));
        Exporter::new().save(&quantized, &file)?;
        let seconds = loading + start.elapsed().as_secs_f64();
        times.push(format!("{:?}: {seconds:.3}", recipe.name));
        let bytes = std::fs::metadata(&file)?.len();
        let found = embeddings(&quantized, &evaluation, &*backend)?;
        add(recipe.name, &Comparison::of(&float, &found), bytes, seconds);
    }
    match &args.out {
        None => std::fs::remove_dir_all(&scratch)?,
        Some(folder) => {
            let json = format!("{{\n  {}\n}}\n", times.join(",\n  "));
            write_atomically(folder.join("seconds.json"), |f| {
                Ok(f.write_all(json.as_bytes())?)
            })?;
        }
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    print(&format!("{table}\n"))
}

/// The examples of a file, in the order of the model's inputs.
fn examples(graph: &Graph, path: &Path) -> Result<TensorDataset> {
    TensorDataset::new(matching(graph, &arrays(path)?, &[], true)?)
}

/// The model's embedding of each example, 32 at a time.
fn embeddings(graph: &Graph, data: &TensorDataset, backend: &dyn Backend) -> Result<Vec<Vec<f64>>> {
    let indices: Vec<usize> = (0..data.len()).collect();
    let mut parts = Vec::new();
    for batch in indices.chunks(32) {
        parts.push(backend.run_once(graph, &data.batch(batch)?)?.remove(0));
    }
    let all = Tensor::concat(&parts, 0)?;
    let width = all.shape()[1];
    Ok(all.to_f64s().chunks(width).map(<[f64]>::to_vec).collect())
}

/// How near embeddings are to those of the float model.
struct Comparison {
    /// The mean cosine of an embedding and its original.
    cosine: f64,
    /// The lowest.
    lowest: f64,
    /// The share of examples whose nearest neighbour is the same.
    kept: f64,
    /// The mean square of the difference of entries.
    error: f64,
}

impl Comparison {
    fn of(float: &[Vec<f64>], found: &[Vec<f64>]) -> Comparison {
        let pairs = || float.iter().zip(found);
        let cosines: Vec<f64> = pairs().map(|(a, b)| cosine(a, b)).collect();
        let squares = pairs().flat_map(|(a, b)| a.iter().zip(b).map(|(x, y)| (x - y).powi(2)));
        let entries = float.iter().map(Vec::len).sum::<usize>();
        let (before, after) = (neighbours(float), neighbours(found));
        let kept = before.iter().zip(&after).filter(|(a, b)| a == b).count();
        Comparison {
            cosine: cosines.iter().sum::<f64>() / cosines.len() as f64,
            lowest: cosines.iter().copied().fold(1.0, f64::min),
            kept: kept as f64 / before.len() as f64,
            error: squares.sum::<f64>() / entries as f64,
        }
    }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The example most like each one.
fn neighbours(rows: &[Vec<f64>]) -> Vec<usize> {
    let nearest = |i: usize| {
        let others = (0..rows.len()).filter(|&j| j != i);
        let likeness = |j: &usize| cosine(&rows[i], &rows[*j]);
        others.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
    };
    (0..rows.len()).map(|i| nearest(i).unwrap_or(i)).collect()
}
