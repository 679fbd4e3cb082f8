//! Which layers get which scheme.

use std::fmt;

use opt_core::{Error, ErrorKind, Result};
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::scheme::Scheme;

/// Selects layers by the name of the node or of its weight, or by the op.
#[derive(Debug, Clone, PartialEq)]
pub struct Select(By);

#[derive(Debug, Clone)]
enum By {
    Name(String),
    Contains(String),
    Regex(Regex),
    Op(String),
}

impl Select {
    /// The node or its weight has this name.
    pub fn name(name: impl Into<String>) -> Select {
        Select(By::Name(name.into()))
    }

    /// The name of the node or of its weight contains this.
    pub fn contains(part: impl Into<String>) -> Select {
        Select(By::Contains(part.into()))
    }

    /// The name of the node or of its weight matches a regular expression, anywhere unless it says
    /// `^` and `$`.
    ///
    /// # Errors
    /// If it is none.
    pub fn regex(pattern: &str) -> Result<Select> {
        match Regex::new(pattern) {
            Ok(regex) => Ok(Select(By::Regex(regex))),
            Err(e) => Err(Error::invalid(format!("the pattern `{pattern}`: {e}"))),
        }
    }

    /// The node has this op.
    pub fn op(op: impl Into<String>) -> Select {
        Select(By::Op(op.into()))
    }

    fn matches(&self, layer: &Candidate) -> bool {
        let names = [&layer.node, &layer.weight];
        match &self.0 {
            By::Name(name) => names.contains(&name),
            By::Contains(part) => names.iter().any(|n| n.contains(part.as_str())),
            By::Regex(regex) => names.iter().any(|n| regex.is_match(n)),
            By::Op(op) => layer.op == *op,
        }
    }
}

impl PartialEq for By {
    fn eq(&self, other: &By) -> bool {
        match (self, other) {
            (By::Name(a), By::Name(b))
            | (By::Contains(a), By::Contains(b))
            | (By::Op(a), By::Op(b)) => a == b,
            (By::Regex(a), By::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl fmt::Display for Select {
    /// A key and a value of TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            By::Name(name) => write!(f, "name = {name:?}"),
            By::Contains(part) => write!(f, "contains = {part:?}"),
            By::Regex(regex) => write!(f, "regex = {:?}", regex.as_str()),
            By::Op(op) => write!(f, "op = {op:?}"),
        }
    }
}

/// Rules that say which layers get another scheme than a pass' own, or are left alone. The first
/// rule that selects a layer decides about it.
///
/// A rule that decides about no layer is an error, unless it is [allowed](Rules::allow_unused) to.
///
/// ```
/// use opt_quant::{QuantizeWeights, Rules, Scheme, Select};
///
/// let rules = Rules::new()
///     .keep(Select::name("lm_head.weight"))
///     .apply(Select::op("Gather"), Scheme::int8())
///     .apply(Select::regex(r"layers\.(0|11)\.")?, Scheme::nf4());
/// let pass = QuantizeWeights::new(Scheme::int4().group(64)).rules(rules.clone());
///
/// // The same as text.
/// let text = r#"
///     [[rules]]
///     name = "lm_head.weight"
///     keep = true
///     [[rules]]
///     op = "Gather"
///     scheme = "int8"
///     [[rules]]
///     regex = 'layers\.(0|11)\.'
///     scheme = "nf4"
/// "#;
/// #[derive(serde::Deserialize)]
/// struct File {
///     rules: Rules,
/// }
/// assert_eq!(toml::from_str::<File>(text).unwrap().rules, rules);
/// # let _ = pass;
/// # Ok::<(), opt_quant::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "Vec<RuleText>", try_from = "Vec<RuleText>")]
pub struct Rules {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    select: Select,
    /// `None` leaves the layer alone.
    scheme: Option<Scheme>,
    /// Whether it may decide about no layer.
    optional: bool,
}

/// A layer that rules may decide about.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) op: String,
    pub(crate) node: String,
    pub(crate) weight: String,
}

impl Rules {
    /// No rules.
    pub fn new() -> Rules {
        Rules::default()
    }

    /// Leaves the layers alone that are selected.
    #[must_use]
    pub fn keep(self, select: Select) -> Rules {
        self.with(select, None)
    }

    /// Gives the layers that are selected a scheme.
    #[must_use]
    pub fn apply(self, select: Select, scheme: Scheme) -> Rules {
        self.with(select, Some(scheme))
    }

    fn with(mut self, select: Select, scheme: Option<Scheme>) -> Rules {
        self.rules.push(Rule {
            select,
            scheme,
            optional: false,
        });
        self
    }

    /// Lets the rules so far decide about no layer without an error, for rules that serve several
    /// models (`optional = true` in text).
    #[must_use]
    pub fn allow_unused(mut self) -> Rules {
        for rule in &mut self.rules {
            rule.optional = true;
        }
        self
    }

    /// These rules, and then others.
    #[must_use]
    pub fn then(mut self, others: Rules) -> Rules {
        self.rules.extend(others.rules);
        self
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a rule gives layers a scheme.
    pub(crate) fn gives_schemes(&self) -> bool {
        self.rules.iter().any(|rule| rule.scheme.is_some())
    }

    /// The scheme of each layer, `None` where it is left alone.
    pub(crate) fn decide(
        &self,
        layers: &[Candidate],
        otherwise: &Scheme,
    ) -> Result<Vec<Option<Scheme>>> {
        otherwise.check()?;
        for scheme in self.rules.iter().filter_map(|r| r.scheme) {
            scheme.check()?;
        }
        let mut used: Vec<bool> = self.rules.iter().map(|r| r.optional).collect();
        let mut out = Vec::with_capacity(layers.len());
        for layer in layers {
            let found = self.rules.iter().position(|r| r.select.matches(layer));
            out.push(match found {
                Some(i) => {
                    used[i] = true;
                    self.rules[i].scheme
                }
                None => Some(*otherwise),
            });
        }
        if let Some(i) = used.iter().position(|used| !used) {
            let names: Vec<&str> = layers.iter().map(|l| l.weight.as_str()).collect();
            return Err(Error::new(
                ErrorKind::NoEffect,
                format!(
                    "the rule for `{}` decides about none of {names:?}: it matches none, or rules \
                     before it match them",
                    self.rules[i].select
                ),
            ));
        }
        Ok(out)
    }
}

impl fmt::Display for Rules {
    /// An array of TOML's inline tables.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, rule) in self.rules.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{{ {}, ", rule.select)?;
            match rule.scheme {
                None => f.write_str("keep = true")?,
                Some(scheme) => write!(f, "scheme = \"{scheme}\"")?,
            }
            f.write_str(if rule.optional {
                ", optional = true }"
            } else {
                " }"
            })?;
        }
        f.write_str("]")
    }
}

/// A rule as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    contains: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    op: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scheme: Option<Scheme>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    keep: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    optional: bool,
}

impl From<Rules> for Vec<RuleText> {
    fn from(rules: Rules) -> Vec<RuleText> {
        let text = |rule: Rule| {
            let mut text = RuleText {
                scheme: rule.scheme,
                keep: rule.scheme.is_none(),
                optional: rule.optional,
                ..RuleText::default()
            };
            match rule.select.0 {
                By::Name(name) => text.name = Some(name),
                By::Contains(part) => text.contains = Some(part),
                By::Regex(regex) => text.regex = Some(regex.as_str().to_string()),
                By::Op(op) => text.op = Some(op),
            }
            text
        };
        rules.rules.into_iter().map(text).collect()
    }
}

impl TryFrom<Vec<RuleText>> for Rules {
    type Error = Error;

    fn try_from(rules: Vec<RuleText>) -> Result<Rules> {
        let mut out = Rules::new();
        for rule in rules {
            let mut selects = Vec::new();
            selects.extend(rule.name.map(Select::name));
            selects.extend(rule.contains.map(Select::contains));
            selects.extend(rule.op.map(Select::op));
            if let Some(pattern) = rule.regex {
                selects.push(Select::regex(&pattern)?);
            }
            if selects.len() != 1 || rule.keep == rule.scheme.is_some() {
                return Err(Error::invalid(
                    "a rule has one of `name`, `contains`, `regex` and `op`, and either \
                     `keep = true` or a `scheme`",
                ));
            }
            let select = selects.remove(0);
            out.rules.push(Rule {
                select,
                scheme: rule.scheme,
                optional: rule.optional,
            });
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Vec<Candidate> {
        [
            ("Gather", "embed.gather", "embed.table"),
            ("MatMul", "layers.0.q.matmul", "layers.0.q.weight"),
            ("MatMul", "layers.1.q.matmul", "layers.1.q.weight"),
            ("Conv", "stem.conv", "stem.weight"),
        ]
        .map(|(op, node, weight)| Candidate {
            op: op.into(),
            node: node.into(),
            weight: weight.into(),
        })
        .to_vec()
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = Rules::new()
            .keep(Select::name("stem.conv"))
            .apply(Select::regex(r"^layers\.1\.").unwrap(), Scheme::nf4())
            .apply(Select::contains("layers"), Scheme::mxfp4())
            .apply(Select::op("Gather"), Scheme::int8());
        let decided = rules.decide(&layers(), &Scheme::int4()).unwrap();
        let expected = [
            Some(Scheme::int8()),
            Some(Scheme::mxfp4()),
            Some(Scheme::nf4()),
            None,
        ];
        assert_eq!(decided, expected);
        let decided = Rules::new().decide(&layers(), &Scheme::int4()).unwrap();
        assert_eq!(decided, [Some(Scheme::int4()); 4]);
    }

    #[test]
    fn a_rule_without_a_layer_is_an_error_unless_allowed() {
        let nowhere = Rules::new().keep(Select::name("layers"));
        let shadowed = Rules::new()
            .keep(Select::op("Conv"))
            .apply(Select::contains("stem"), Scheme::int8());
        for rules in [nowhere, shadowed] {
            let error = rules.decide(&layers(), &Scheme::int4()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoEffect);
            let rules = rules.allow_unused();
            assert!(rules.decide(&layers(), &Scheme::int4()).is_ok());
        }
        let wrong = Rules::new().apply(Select::op("Conv"), Scheme::nf4().asymmetric());
        assert!(wrong.decide(&layers(), &Scheme::int4()).is_err());
        assert!(Select::regex("(").is_err());
    }

    #[test]
    fn text_goes_there_and_back() {
        #[derive(Serialize, Deserialize)]
        struct File {
            rules: Rules,
        }
        let rules = Rules::new()
            .keep(Select::contains("a \"quoted\" part"))
            .allow_unused()
            .apply(Select::regex(r"\.w$").unwrap(), Scheme::uint4().group(64))
            .apply(Select::op("Conv"), Scheme::int8());
        let inline = format!("rules = {rules}");
        assert_eq!(toml::from_str::<File>(&inline).unwrap().rules, rules);
        let file = File {
            rules: rules.clone(),
        };
        let text = toml::to_string(&file).unwrap();
        assert_eq!(toml::from_str::<File>(&text).unwrap().rules, rules);
        for text in [
            "rules = [{ name = \"a\" }]",
            "rules = [{ scheme = \"int8\" }]",
            "rules = [{ name = \"a\", keep = true, scheme = \"int8\" }]",
            "rules = [{ name = \"a\", op = \"b\", keep = true }]",
            "rules = [{ name = \"a\", shceme = \"int8\" }]",
            "rules = [{ regex = \"(\", keep = true }]",
        ] {
            assert!(toml::from_str::<File>(text).is_err(), "{text}");
        }
    }
}
