//! Choosing an optimizer on the command line.

use clap::Args;
use opt_core::{Error, Result};
use opt_train::{
    Adadelta, Adagrad, Adam, AdamW, Adamax, GradientDescent, Lion, Muon, NAdam, Optimizer, RAdam,
    RmsProp, Sgd,
};

/// The names of the optimizers.
const NAMES: &str = "gd, sgd, momentum, nesterov, rmsprop, adagrad, adadelta, adam, amsgrad, \
                     adamw, adamax, nadam, radam, lion or muon";

/// Which optimizer, and its settings.
#[derive(Debug, Clone, Args)]
pub struct OptimizerArgs {
    /// `gd`, `sgd`, `momentum`, `nesterov`, `rmsprop`, `adagrad`, `adadelta`, `adam`, `amsgrad`,
    /// `adamw`, `adamax`, `nadam`, `radam`, `lion` or `muon`.
    #[arg(long)]
    optimizer: String,
    /// The momentum of `sgd` and `rmsprop` (0 if left out), `momentum` and `nesterov` (0.9), `muon`
    /// (0.95).
    #[arg(long)]
    momentum: Option<f64>,
    /// The weight decay of the optimizer, but for `gd`; its usual one if left out.
    #[arg(long)]
    weight_decay: Option<f64>,
}

impl OptimizerArgs {
    /// The optimizer.
    ///
    /// # Errors
    /// If there is none of the name, or it has no such setting.
    pub fn build(&self) -> Result<Box<dyn Optimizer>> {
        let name = self.optimizer.as_str();
        let has_momentum = matches!(name, "sgd" | "momentum" | "nesterov" | "rmsprop" | "muon");
        if self.momentum.is_some() && !has_momentum {
            return Err(no_setting(name, "--momentum"));
        }
        if self.weight_decay.is_some() && name == "gd" {
            return Err(no_setting(name, "--weight-decay"));
        }
        let momentum = |usual: f64| self.momentum.unwrap_or(usual);
        let weight_decay = self.weight_decay.unwrap_or(0.0);
        Ok(match name {
            "gd" => Box::new(GradientDescent),
            "sgd" | "momentum" | "nesterov" => {
                let sgd = match name {
                    "sgd" => Sgd::momentum(momentum(0.0)),
                    "momentum" => Sgd::momentum(momentum(0.9)),
                    _ => Sgd::nesterov(momentum(0.9)),
                };
                Box::new(Sgd {
                    weight_decay,
                    ..sgd
                })
            }
            "rmsprop" => Box::new(RmsProp {
                momentum: momentum(0.0),
                weight_decay,
                ..RmsProp::default()
            }),
            "adagrad" => Box::new(Adagrad {
                weight_decay,
                ..Adagrad::default()
            }),
            "adadelta" => Box::new(Adadelta {
                weight_decay,
                ..Adadelta::default()
            }),
            "adam" | "amsgrad" => Box::new(Adam {
                weight_decay,
                amsgrad: name == "amsgrad",
                ..Adam::default()
            }),
            "adamw" => {
                let usual = AdamW::default();
                Box::new(AdamW {
                    weight_decay: self.weight_decay.unwrap_or(usual.weight_decay),
                    ..usual
                })
            }
            "adamax" => Box::new(Adamax {
                weight_decay,
                ..Adamax::default()
            }),
            "nadam" => Box::new(NAdam {
                weight_decay,
                ..NAdam::default()
            }),
            "radam" => Box::new(RAdam {
                weight_decay,
                ..RAdam::default()
            }),
            "lion" => Box::new(Lion {
                weight_decay,
                ..Lion::default()
            }),
            "muon" => {
                let usual = Muon::default();
                Box::new(Muon {
                    momentum: momentum(usual.momentum),
                    weight_decay: self.weight_decay.unwrap_or(usual.weight_decay),
                    ..usual
                })
            }
            other => {
                return Err(Error::invalid(format!(
                    "there is no optimizer `{other}`; use {NAMES}"
                )));
            }
        })
    }
}

fn no_setting(name: &str, setting: &str) -> Error {
    Error::invalid(format!("the optimizer `{name}` has no `{setting}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(optimizer: &str, momentum: Option<f64>) -> OptimizerArgs {
        OptimizerArgs {
            optimizer: optimizer.into(),
            momentum,
            weight_decay: None,
        }
    }

    #[test]
    fn every_name_that_is_listed_is_known() {
        for name in NAMES.replace(" or ", ", ").split(", ") {
            args(name, None).build().expect(name);
        }
        let error = args("adom", None).build().unwrap_err().to_string();
        assert!(error.contains("adom") && error.contains("radam"), "{error}");
        let error = args("adam", Some(0.5)).build().unwrap_err().to_string();
        assert!(error.contains("--momentum"), "{error}");
    }
}
