//! A report as one HTML file.

mod axis;
mod format;
mod layers;
mod models;
mod page;
mod plots;
mod predictions;
mod svg;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use opt_core::graph::{Applied, Bindings};
use opt_core::{Error, Graph, Result, ResultExt};

use crate::cost::batch_of_one;
use crate::{Comparison, ConfusionMatrix, LayerTime, ModelCost};
use axis::Unit;
use plots::bars::{Bars, Group};
use plots::{Figure, SERIES};
use svg::escape;

/// A line of a plot: points of a figure such as a loss over epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What the legend calls it.
    pub name: String,
    /// The points (x, y), in order. What is not finite is left out of the plot, and said to be.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// A line through points (x, y).
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Curve {
        Curve {
            name: name.into(),
            points: points.into_iter().collect(),
        }
    }
}

/// A report on models before and after compression, as one HTML file that needs nothing else: no
/// script, no network, the drawings are SVG. It is legible on wide and narrow screens, in light
/// and dark, and by screen readers; the same content gives the same bytes.
///
/// What it shows is what it was given: the [`Comparison`] and the cost of the models as a table,
/// accuracy against size and latency, how each model was made (the passes in its graph's
/// [log](Graph::log)), bytes, time and sparsity layer by layer, histograms of the weights,
/// confusion matrices and training curves.
///
/// ```
/// use opt_core::nn::{Linear, ModelBuilder};
/// use opt_eval::{Comparison, Curve, HtmlReport, Row};
///
/// let model = |width: usize| {
///     let mut b = ModelBuilder::new("mlp", 0);
///     let x = b.batch("x", [16])?;
///     let x = b.layer("hidden", Linear::new(width), x)?;
///     let y = b.layer("out", Linear::new(2), x)?;
///     b.output("y", y)?;
///     b.finish()
/// };
/// let (before, after) = (model(64)?, model(4)?);
/// let row = |name: &str, accuracy, bytes| Row {
///     name: name.into(),
///     accuracy: Some(accuracy),
///     parameters: bytes / 4,
///     bytes,
///     macs: bytes / 4,
///     latency_us: None,
/// };
/// let table = Comparison::new(vec![row("before", 0.98, 4872), row("after", 0.97, 312)]);
/// let html = HtmlReport::new("A smaller network")
///     .comparison(&table)
///     .model("before", &before)
///     .model("after", &after)
///     .curves("Training", "epoch", "loss", [Curve::new("after", [(0.0, 0.7), (1.0, 0.2)])])
///     .to_html()?;
/// assert!(html.contains("15.6x smaller"));
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct HtmlReport<'a> {
    title: String,
    paragraphs: Vec<String>,
    comparison: Comparison,
    models: Vec<Model<'a>>,
    focus: Option<Vec<String>>,
    times: Vec<(String, Vec<LayerTime>)>,
    confusions: Vec<(String, ConfusionMatrix, Vec<String>)>,
    curves: Vec<Curves>,
    bars: Vec<LayerBars>,
}

/// Numbers of layers.
#[derive(Debug, Clone)]
struct LayerBars {
    heading: String,
    axis: String,
    series: Vec<(String, Vec<(String, f64)>)>,
}

#[derive(Debug, Clone)]
struct Model<'a> {
    name: String,
    graph: &'a Graph,
    bindings: Bindings,
}

#[derive(Debug, Clone)]
struct Curves {
    heading: String,
    x: String,
    y: String,
    curves: Vec<Curve>,
}

/// A model whose cost has been counted.
#[derive(Debug)]
struct Counted<'a> {
    name: &'a str,
    /// With symbols bound.
    graph: Graph,
    cost: ModelCost,
}

impl<'a> HtmlReport<'a> {
    /// A report of a title and nothing else yet. All texts are shown as they are; markup in them
    /// is escaped.
    pub fn new(title: impl Into<String>) -> HtmlReport<'a> {
        HtmlReport {
            title: title.into(),
            paragraphs: Vec::new(),
            comparison: Comparison::default(),
            models: Vec::new(),
            focus: None,
            times: Vec::new(),
            confusions: Vec::new(),
            curves: Vec::new(),
            bars: Vec::new(),
        }
    }

    /// Adds a paragraph below the title: what was measured, on which data and machine.
    #[must_use]
    pub fn paragraph(mut self, text: impl Into<String>) -> HtmlReport<'a> {
        self.paragraphs.push(text.into());
        self
    }

    /// The measured figures. Models are told apart by name, here and in the other methods.
    #[must_use]
    pub fn comparison(mut self, table: &Comparison) -> HtmlReport<'a> {
        self.comparison = table.clone();
        self
    }

    /// Adds a model, with its cost for one example: symbols that are the first axis of an input
    /// are 1.
    #[must_use]
    pub fn model(self, name: impl Into<String>, graph: &'a Graph) -> HtmlReport<'a> {
        self.model_at(name, graph, batch_of_one(graph))
    }

    /// Adds a model, with its cost for these sizes of its symbols.
    #[must_use]
    pub fn model_at(
        mut self,
        name: impl Into<String>,
        graph: &'a Graph,
        bindings: Bindings,
    ) -> HtmlReport<'a> {
        self.models.push(Model {
            name: name.into(),
            graph,
            bindings,
        });
        self
    }

    /// The models whose layers are drawn side by side, one to four; by default the first and the
    /// last that were added.
    #[must_use]
    pub fn focus(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> HtmlReport<'a> {
        self.focus = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// How long the layers of a model take, from [`layer_times`](crate::layer_times). They are
    /// drawn for the models in [focus](HtmlReport::focus).
    #[must_use]
    pub fn layer_times(
        mut self,
        model: impl Into<String>,
        times: impl IntoIterator<Item = LayerTime>,
    ) -> HtmlReport<'a> {
        self.times.push((model.into(), times.into_iter().collect()));
        self
    }

    /// Adds a model's confusion matrix; classes without a name are called by their number. Of
    /// more than 40 classes the most frequent mistakes are listed instead.
    #[must_use]
    pub fn confusion(
        mut self,
        model: impl Into<String>,
        matrix: &ConfusionMatrix,
        classes: impl IntoIterator<Item = impl Into<String>>,
    ) -> HtmlReport<'a> {
        let mut names: Vec<String> = classes.into_iter().map(Into::into).collect();
        names.truncate(matrix.classes());
        names.extend((names.len()..matrix.classes()).map(|c| c.to_string()));
        self.confusions.push((model.into(), matrix.clone(), names));
        self
    }

    /// Adds a plot of lines with one pair of axes: a loss or an accuracy over epochs.
    #[must_use]
    pub fn curves(
        mut self,
        heading: impl Into<String>,
        x_label: impl Into<String>,
        y_label: impl Into<String>,
        curves: impl IntoIterator<Item = Curve>,
    ) -> HtmlReport<'a> {
        self.curves.push(Curves {
            heading: heading.into(),
            x: x_label.into(),
            y: y_label.into(),
            curves: curves.into_iter().collect(),
        });
        self
    }

    /// Adds bars of a number for each layer, such as how far quantizing a layer moves the outputs, in
    /// one to four series. Layers are told apart by name; a number that is negative or infinite has
    /// no bar.
    ///
    /// ```
    /// use opt_core::nn::{Linear, ModelBuilder};
    /// use opt_core::{Context, Pass, Tensor};
    /// use opt_data::TensorDataset;
    /// use opt_eval::HtmlReport;
    /// use opt_ndarray::NdarrayBackend;
    /// use opt_quant::analysis::sensitivity;
    /// use opt_quant::{QuantizeWeights, Rules, Scheme};
    ///
    /// let mut m = ModelBuilder::new("model", 0);
    /// let x = m.batch("x", [64])?;
    /// let h = m.layer("fc1", Linear::new(64), x)?;
    /// let y = m.layer("fc2", Linear::new(3), h)?;
    /// m.output("y", y)?;
    /// let graph = m.finish()?;
    ///
    /// let x: Vec<f32> = (0..640).map(|i| (i as f32).sin()).collect();
    /// let data = TensorDataset::new(vec![Tensor::new([10, 64], x)?])?;
    /// let backend = NdarrayBackend::new();
    /// let mut cx = Context::new().with_backend(&backend).with_calibration(&data);
    /// let mut series = Vec::new();
    /// for scheme in [Scheme::int8(), Scheme::int4()] {
    ///     let pass = move |rules: &Rules| {
    ///         Box::new(QuantizeWeights::new(scheme).rules(rules.clone())) as Box<dyn Pass>
    ///     };
    ///     let layers = ["fc1.weight", "fc2.weight"];
    ///     let table = sensitivity(&graph, &pass, scheme, &layers, &mut cx)?;
    ///     let errors = table.layers.into_iter().map(|layer| (layer.name, layer.mse));
    ///     series.push((scheme.to_string(), errors.collect::<Vec<_>>()));
    /// }
    /// let html = HtmlReport::new("Sensitivity")
    ///     .layer_bars("One layer at a time", "mean squared error of the outputs", series)
    ///     .to_html()?;
    /// assert!(html.contains("fc2.weight, int4"));
    /// # Ok::<(), opt_core::Error>(())
    /// ```
    #[must_use]
    pub fn layer_bars(
        mut self,
        heading: impl Into<String>,
        axis: impl Into<String>,
        series: impl IntoIterator<Item = (String, Vec<(String, f64)>)>,
    ) -> HtmlReport<'a> {
        self.bars.push(LayerBars {
            heading: heading.into(),
            axis: axis.into(),
            series: series.into_iter().collect(),
        });
        self
    }

    /// The report as HTML.
    ///
    /// # Errors
    /// If two models have one name, a model in [focus](HtmlReport::focus) was not added, or there
    /// are none or more than four of them; and those of [`ModelCost::of`], with the model's name
    /// in the path.
    pub fn to_html(&self) -> Result<String> {
        let models = self.counted()?;
        let focus = self.focused(&models)?;
        let series = |name: &str| focus.iter().position(|&m| models[m].name == name);
        let mut body = page::section("Models", &models::table(&self.comparison, &models));
        let trade_offs = models::trade_offs(&self.comparison, &models, series);
        body.push_str(&page::section(
            "Accuracy against cost",
            &page::cards(trade_offs),
        ));
        body.push_str(&page::section("Training", &page::cards(self.training())));
        let in_focus: Vec<&Counted<'_>> = focus.iter().map(|&m| &models[m]).collect();
        let mut layers = layers::charts(&in_focus, &self.times);
        layers.push_str(&page::cards(self.layer_charts()?));
        body.push_str(&page::section("Layer by layer", &layers));
        let weights = layers::weights(&in_focus)?;
        body.push_str(&page::section("Weights", &weights));
        let predictions = predictions::section(&self.confusions);
        body.push_str(&page::section("Predictions", &predictions));
        body.push_str(&page::section("How they were made", &pipelines(&models)));
        let paragraph = |text: &String| format!("<p>{}</p>\n", escape(text));
        let intro: String = self.paragraphs.iter().map(paragraph).collect();
        Ok(page::page(&self.title, &intro, &body))
    }

    /// Writes the report to a file, whole or not at all.
    ///
    /// # Errors
    /// Those of [`HtmlReport::to_html`], and if the file cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let html = self.to_html()?;
        opt_core::file::write_atomically(path, |file| Ok(file.write_all(html.as_bytes())?))
    }

    fn counted(&self) -> Result<Vec<Counted<'_>>> {
        let mut counted: Vec<Counted<'_>> = Vec::with_capacity(self.models.len());
        for model in &self.models {
            if counted.iter().any(|c| c.name == model.name) {
                let message = format!("two models are named `{}`", model.name);
                return Err(Error::invalid(message));
            }
            let place = || model.name.clone();
            counted.push(Counted {
                name: &model.name,
                graph: model.graph.bind(&model.bindings).at(place)?,
                cost: ModelCost::of(model.graph, &model.bindings).at(place)?,
            });
        }
        Ok(counted)
    }

    /// Which models' layers are drawn.
    fn focused(&self, models: &[Counted<'_>]) -> Result<Vec<usize>> {
        let Some(names) = &self.focus else {
            let mut ends = vec![0, models.len().saturating_sub(1)];
            ends.dedup();
            ends.retain(|&m| m < models.len());
            return Ok(ends);
        };
        if names.is_empty() || names.len() > SERIES {
            return Err(Error::invalid(format!(
                "expected one to {SERIES} models in focus, found {}",
                names.len()
            )));
        }
        let find = |name: &String| {
            models.iter().position(|m| m.name == name).ok_or_else(|| {
                let known: Vec<&str> = models.iter().map(|m| m.name).collect();
                Error::invalid(format!(
                    "no model in focus is named `{name}` among {known:?}"
                ))
            })
        };
        names.iter().map(find).collect()
    }

    fn layer_charts(&self) -> Result<Vec<Figure>> {
        let mut out = Vec::new();
        for (i, bars) in self.bars.iter().enumerate() {
            let count = bars.series.len();
            if count == 0 || count > SERIES {
                let message = format!("expected one to {SERIES} series of bars, found {count}");
                return Err(Error::invalid(message).at(bars.heading.clone()));
            }
            let mut groups: Vec<Group> = Vec::new();
            let mut places: HashMap<&str, usize> = HashMap::new();
            for (s, (_, values)) in bars.series.iter().enumerate() {
                for (name, value) in values {
                    let place = *places.entry(name).or_insert_with(|| {
                        let values = vec![None; count];
                        let name = name.clone();
                        groups.push(Group { name, values });
                        groups.len() - 1
                    });
                    groups[place].values[s] = (*value >= 0.0).then_some(*value);
                }
            }
            let names: Vec<String> = bars.series.iter().map(|s| s.0.clone()).collect();
            let what = Bars {
                id: &format!("layerbars{i}"),
                heading: &bars.heading,
                axis: &bars.axis,
                caption: "",
                unit: Unit::Number,
            };
            out.extend(plots::bars::bars(what, &names, &groups));
        }
        Ok(out)
    }

    fn training(&self) -> Vec<Figure> {
        let plot = |(i, c): (usize, &Curves)| {
            let id = format!("curves{i}");
            plots::curves::curves(&id, &c.heading, (&c.x, &c.y), &c.curves)
        };
        self.curves.iter().enumerate().filter_map(plot).collect()
    }
}

fn pipelines(models: &[Counted<'_>]) -> String {
    let made: Vec<(&str, &[Applied])> = models
        .iter()
        .filter(|m| !m.graph.log().is_empty())
        .map(|m| (m.name, m.graph.log()))
        .collect();
    if made.is_empty() {
        return String::new();
    }
    let draw = |(i, (name, log)): (usize, &(&str, &[Applied]))| {
        plots::chain::chain(&format!("chain{i}"), name, log)
    };
    let mut out = page::cards(made.iter().enumerate().map(draw));
    let source = escape_lines(&plots::chain::mermaid(&made));
    let source = format!("<pre class=\"mermaid\"><code>{source}</code></pre>\n");
    out.push_str(&page::details("The same as a Mermaid diagram", &source));
    out
}

/// Escaped text that keeps its lines.
fn escape_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escape).collect();
    lines.join("\n")
}
