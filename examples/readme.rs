//! The program of the README: passes from three crates, composed.

use opt_core::{Context, Pipeline, Result, nn::zoo};
use opt_data::{Scale, digits};
use opt_distill::{Distil, SoftTargets};
use opt_eval::{CompareOptions, compare};
use opt_ndarray::NdarrayBackend;
use opt_prune::ChannelPrune;
use opt_quant::{Config, QuantizeAware};
use opt_train::{Adam, Constant, CrossEntropy, Trainer};

fn main() -> Result<()> {
    let backend = NdarrayBackend::new();
    let data = digits()?;
    let scale = Scale::new(1.0 / 16.0, 0.0)?;
    let (train, test) = (data.train.map(0, &scale)?, data.test.map(0, &scale)?);
    let trainer = Trainer::new(CrossEntropy, Adam::default(), Constant(2e-3)).epochs(10);

    let model = zoo::resnet20([1, 8, 8], 10, 0)?;
    let (teacher, _) = trainer.fit(model, &train, &backend)?;

    let distil = Distil::new(SoftTargets::default(), trainer);
    let compress = Pipeline::new()
        .then(ChannelPrune::new(0.5))
        .then(distil.clone())
        .then(QuantizeAware::new(Config::default(), distil));
    let mut cx = Context::new()
        .with_backend(&backend)
        .with_training(&train)
        .with_teacher(&teacher);
    let (small, _) = compress.run(teacher.clone(), &mut cx)?;

    let rows = [("teacher", &teacher), ("compressed", &small)];
    println!(
        "{}",
        compare(&rows, &test, &backend, &CompareOptions::new())?
    );
    Ok(())
}
