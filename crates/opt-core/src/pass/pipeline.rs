//! Passes in order, checked before they run, to and from TOML.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::{
    CommonSubexpressions, Context, DeadCode, EvalMode, FoldBatchNorm, FoldConstants,
    MixedPrecision, Needs, Pass, Preserves, Report, TrainMode,
};
use crate::graph::Applied;
use crate::{Error, ErrorKind, Event, FactKind, Graph, Result, ResultExt};

/// Passes that run one after the other.
///
/// [`Pipeline::check`] finds, before anything runs, what would fail later: a pass whose needs the
/// context does not have, and a pass that would break a fact which an earlier one establishes.
/// After each pass the graph is verified, its facts included, and logged; a pass that changed
/// nothing is an error unless [allowed](Pipeline::allow_no_effect).
///
/// ```
/// use opt_core::pass::{DeadCode, EvalMode, Registry};
/// use opt_core::Pipeline;
///
/// # fn main() -> opt_core::Result<()> {
/// let pipeline = Pipeline::new().then(EvalMode).then(DeadCode);
/// let text = pipeline.to_toml();
/// assert_eq!(text, "[[pass]]\nname = \"eval_mode\"\n\n[[pass]]\nname = \"dead_code\"\n");
/// assert_eq!(Pipeline::from_toml(&text, &Registry::core())?.to_toml(), text);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Pipeline {
    passes: Vec<Arc<dyn Pass>>,
    allow_no_effect: bool,
}

impl Pipeline {
    /// A pipeline without passes.
    pub fn new() -> Pipeline {
        Pipeline::default()
    }

    /// Adds a pass at the end.
    #[must_use]
    pub fn then(mut self, pass: impl Pass + 'static) -> Pipeline {
        self.passes.push(Arc::new(pass));
        self
    }

    /// Accepts passes that change nothing.
    #[must_use]
    pub fn allow_no_effect(mut self) -> Pipeline {
        self.allow_no_effect = true;
        self
    }

    /// Checks the pipeline for a graph and a context without running it.
    ///
    /// # Errors
    /// [`ErrorKind::Pipeline`] if there are no passes or the context lacks what a pass needs;
    /// [`ErrorKind::FactViolated`] if a pass does not keep a fact that the graph has or an
    /// earlier pass establishes. Both name the pass.
    pub fn check(&self, graph: &Graph, cx: &Context<'_>) -> Result<()> {
        if self.passes.is_empty() {
            return Err(Error::new(
                ErrorKind::Pipeline,
                "the pipeline has no passes",
            ));
        }
        let has = cx.available();
        let mut facts: BTreeMap<FactKind, String> = graph
            .facts()
            .iter()
            .map(|(_, fact)| (fact.kind(), "the graph".to_string()))
            .collect();
        for pass in &self.passes {
            let needs = pass.needs();
            for (needed, there, what) in [
                (needs.backend, has.backend, "a backend"),
                (
                    needs.calibration,
                    has.calibration || has.training,
                    "calibration examples",
                ),
                (needs.training, has.training, "training examples"),
                (needs.teacher, has.teacher, "a teacher"),
            ] {
                if needed && !there {
                    return Err(Error::new(
                        ErrorKind::Pipeline,
                        format!("it needs {what}, which the context does not have"),
                    )
                    .at(pass.name().to_string()));
                }
            }
            for (kind, from) in &facts {
                if !pass.preserves().keeps(*kind) {
                    return Err(Error::new(
                        ErrorKind::FactViolated,
                        format!("it would break the {kind:?} of {from}; put it before"),
                    )
                    .at(pass.name().to_string()));
                }
            }
            for kind in pass.establishes() {
                facts.insert(kind, format!("`{}`", pass.name()));
            }
        }
        Ok(())
    }

    /// Checks the pipeline and runs it; returns the graph and each pass's report.
    ///
    /// # Errors
    /// Those of [`Pipeline::check`] and of the passes, at the pass's name;
    /// [`ErrorKind::NoEffect`] if a pass changed nothing.
    pub fn run(
        &self,
        graph: Graph,
        cx: &mut Context<'_>,
    ) -> Result<(Graph, Vec<(String, Report)>)> {
        self.check(&graph, cx)?;
        let mut graph = graph;
        let mut reports = Vec::new();
        for pass in &self.passes {
            let name = pass.name().to_string();
            let place = || name.clone();
            let (next, report) = pass.apply(graph, cx).at(place)?;
            if report.changed == 0 && !self.allow_no_effect {
                return Err(Error::new(ErrorKind::NoEffect, "the pass changed nothing").at(name));
            }
            next.verify().at(place)?;
            graph = next;
            graph.push_log(Applied {
                pass: name.clone(),
                config: pass.config(),
                summary: report.to_string(),
            });
            cx.emit(&Event::Note(format!("{name}: {report}")));
            reports.push((name, report));
        }
        Ok((graph, reports))
    }

    /// The pipeline as TOML: a table `[[pass]]` with the name and parameters of each.
    pub fn to_toml(&self) -> String {
        let one =
            |pass: &Arc<dyn Pass>| format!("[[pass]]\nname = {:?}\n{}", pass.name(), pass.config());
        self.passes.iter().map(one).collect::<Vec<_>>().join("\n")
    }

    /// A pipeline from TOML, its passes made by a registry.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] if the text is no TOML of that form; [`ErrorKind::Pipeline`] if a
    /// pass is unknown, listing those that are known; those of the passes' constructors, at the
    /// pass's name.
    pub fn from_toml(text: &str, registry: &Registry) -> Result<Pipeline> {
        let bad = |m: String| Error::new(ErrorKind::Format, m);
        let table: toml::Table = text.parse().map_err(|e| bad(format!("{e}")))?;
        if let Some(key) = table.keys().find(|k| *k != "pass") {
            return Err(bad(format!(
                "unknown key `{key}`; a pipeline has `[[pass]]` only"
            )));
        }
        let Some(toml::Value::Array(passes)) = table.get("pass") else {
            return Err(bad("a pipeline has at least one `[[pass]]`".into()));
        };
        let mut pipeline = Pipeline::new();
        for (i, entry) in passes.iter().enumerate() {
            let place = || format!("pass {i}");
            let mut entry = match entry {
                toml::Value::Table(t) => t.clone(),
                _ => return Err(bad("a pass must be a table".into()).at(place())),
            };
            let name = match entry.remove("name") {
                Some(toml::Value::String(name)) => name,
                _ => return Err(bad("a pass has a `name`".into()).at(place())),
            };
            let make = registry.makers.get(&name).ok_or_else(|| {
                let known: BTreeSet<_> = registry.makers.keys().collect();
                Error::new(
                    ErrorKind::Pipeline,
                    format!("no pass is named `{name}`; the registry has {known:?}"),
                )
            })?;
            pipeline
                .passes
                .push(make(&entry.to_string()).at(|| name)?.into());
        }
        Ok(pipeline)
    }
}

impl Pass for Pipeline {
    fn name(&self) -> &str {
        "pipeline"
    }

    fn needs(&self) -> Needs {
        let needs = self.passes.iter().map(|pass| pass.needs());
        needs.fold(Needs::NOTHING, Needs::union)
    }

    fn preserves(&self) -> Preserves {
        let all = [
            FactKind::Mask,
            FactKind::NmPattern,
            FactKind::Codebook,
            FactKind::Grid,
        ];
        let lost = |kind: &FactKind| self.passes.iter().any(|p| !p.preserves().keeps(*kind));
        match all.into_iter().filter(lost).collect::<Vec<_>>() {
            lost if lost.is_empty() => Preserves::All,
            lost => Preserves::AllBut(lost),
        }
    }

    fn establishes(&self) -> Vec<FactKind> {
        self.passes.iter().flat_map(|p| p.establishes()).collect()
    }

    fn apply(&self, graph: Graph, cx: &mut Context<'_>) -> Result<(Graph, Report)> {
        let (graph, reports) = self.run(graph, cx)?;
        let mut all = Report::default();
        for (name, report) in reports {
            all.changed += report.changed;
            all = all.note(format!("{name}: {report}"));
        }
        Ok((graph, all))
    }
}

/// Makes a pass from its parameters as TOML text.
type Maker = Box<dyn Fn(&str) -> Result<Box<dyn Pass>> + Send + Sync>;

/// The passes that pipeline files may name.
///
/// ```
/// use opt_core::pass::{DeadCode, Registry};
/// use opt_core::{ErrorKind, Pipeline};
///
/// // The passes of this crate, and one under a name of its own.
/// let registry = Registry::core().with("clean", |_parameters| Ok(Box::new(DeadCode)));
/// let file = "[[pass]]\nname = \"fold_batch_norm\"\n\n[[pass]]\nname = \"clean\"\n";
/// Pipeline::from_toml(file, &registry)?;
///
/// let error = Pipeline::from_toml(file, &Registry::core()).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Pipeline);
/// # Ok::<(), opt_core::Error>(())
/// ```
#[derive(Default)]
pub struct Registry {
    makers: BTreeMap<String, Maker>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.makers.keys()).finish()
    }
}

impl Registry {
    /// A registry without passes.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// The passes of this crate.
    pub fn core() -> Registry {
        fn plain<P: Pass + Default + 'static>(text: &str) -> Result<Box<dyn Pass>> {
            if text.trim().is_empty() {
                return Ok(Box::new(P::default()));
            }
            Err(Error::new(
                ErrorKind::Pipeline,
                format!("the pass takes no parameters, found `{}`", text.trim()),
            ))
        }
        Registry::new()
            .with("fold_constants", plain::<FoldConstants>)
            .with("dead_code", plain::<DeadCode>)
            .with("common_subexpressions", plain::<CommonSubexpressions>)
            .with("fold_batch_norm", plain::<FoldBatchNorm>)
            .with("train_mode", plain::<TrainMode>)
            .with("eval_mode", plain::<EvalMode>)
            .with("mixed_precision", |text| {
                Ok(Box::new(MixedPrecision::from_toml(text)?))
            })
    }

    /// Adds a pass: its name, and how to make it from its parameters as TOML text.
    #[must_use]
    pub fn with(
        mut self,
        name: impl Into<String>,
        make: impl Fn(&str) -> Result<Box<dyn Pass>> + Send + Sync + 'static,
    ) -> Registry {
        self.makers.insert(name.into(), Box::new(make));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Fact, GraphBuilder, Tensor, TensorType};

    #[derive(Debug, Clone)]
    struct Fake {
        needs: Needs,
        breaks: Vec<FactKind>,
        makes: Vec<FactKind>,
        changed: usize,
    }

    impl Default for Fake {
        fn default() -> Fake {
            Fake {
                needs: Needs::NOTHING,
                breaks: Vec::new(),
                makes: Vec::new(),
                changed: 1,
            }
        }
    }

    impl Pass for Fake {
        fn name(&self) -> &str {
            "fake"
        }
        fn needs(&self) -> Needs {
            self.needs
        }
        fn preserves(&self) -> Preserves {
            Preserves::AllBut(self.breaks.clone())
        }
        fn establishes(&self) -> Vec<FactKind> {
            self.makes.clone()
        }
        fn apply(&self, graph: Graph, _: &mut Context<'_>) -> Result<(Graph, Report)> {
            Ok((graph, Report::new(self.changed)))
        }
    }

    fn graph() -> Graph {
        let mut b = GraphBuilder::new("g");
        let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
        let w = b
            .variable("w", Tensor::zeros(DType::F32, [2]).unwrap())
            .unwrap();
        let y = b.mul(x, w).unwrap();
        b.output("y", y).unwrap();
        b.finish().unwrap()
    }

    #[test]
    fn checks_find_what_would_fail() {
        let cx = Context::new();
        let kind = |p: Pipeline, g: &Graph| p.check(g, &cx).map_err(|e| e.kind());
        let needy = Fake {
            needs: Needs::TEACHER,
            ..Fake::default()
        };
        let masks = Fake {
            makes: vec![FactKind::Mask],
            ..Fake::default()
        };
        let breaker = Fake {
            breaks: vec![FactKind::Mask],
            ..Fake::default()
        };
        let mut masked = graph();
        let w = masked.find("w").unwrap();
        let mask = Tensor::from_bools([2], [true, false]).unwrap();
        masked.facts_mut().insert(w, Fact::Mask(mask));
        let p = Pipeline::new;
        assert_eq!(kind(p(), &graph()), Err(ErrorKind::Pipeline));
        assert_eq!(kind(p().then(needy), &graph()), Err(ErrorKind::Pipeline));
        assert_eq!(
            kind(p().then(breaker.clone()).then(masks.clone()), &graph()),
            Ok(())
        );
        let wrong = p().then(masks).then(breaker.clone());
        assert_eq!(kind(wrong.clone(), &graph()), Err(ErrorKind::FactViolated));
        assert_eq!(
            kind(p().then(wrong), &graph()),
            Ok(()),
            "inner pipelines check themselves"
        );
        assert_eq!(
            kind(p().then(breaker), &masked),
            Err(ErrorKind::FactViolated)
        );
    }

    #[test]
    fn runs_are_logged_and_no_effect_is_an_error() {
        let mut cx = Context::new();
        let (out, reports) = Pipeline::new()
            .then(Fake::default())
            .run(graph(), &mut cx)
            .unwrap();
        assert_eq!((out.log().len(), reports.len()), (1, 1));
        let idle = Pipeline::new().then(Fake {
            changed: 0,
            ..Fake::default()
        });
        let error = idle.run(graph(), &mut cx).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoEffect);
        assert!(idle.allow_no_effect().run(graph(), &mut cx).is_ok());
    }

    #[test]
    fn files_name_what_is_wrong_with_them() {
        let registry = Registry::core();
        for (text, part) in [
            ("", "at least one"),
            ("pass = 3", "at least one"),
            ("[[pass]]\nnmae = \"x\"", "name"),
            ("[[pass]]\nname = \"nowhere\"", "eval_mode"),
            ("[[pass]]\nname = \"eval_mode\"\nspeed = 3", "no parameters"),
            ("other = 1", "other"),
            ("[[pass]", "TOML"),
        ] {
            let error = Pipeline::from_toml(text, &registry).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }
}
