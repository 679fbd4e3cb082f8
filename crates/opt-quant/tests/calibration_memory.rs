//! The memory that calibration takes. In a file of its own: the allocator counts for the whole
//! process.

use opt_core::data::Dataset;
use opt_core::nn::{Linear, ModelBuilder};
use opt_core::{Context, Result, Tensor};
use opt_ndarray::NdarrayBackend;
use opt_quant::{Config, ObserverKind};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Examples that are made when they are asked for.
struct Made(usize);

impl Dataset for Made {
    fn len(&self) -> usize {
        self.0
    }

    fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        let values: Vec<f32> = (0..32)
            .map(|j| ((index * 31 + j * 17) % 101) as f32 - 50.0)
            .collect();
        Ok(vec![Tensor::new([32], values)?])
    }
}

#[test]
fn memory_does_not_grow_with_the_examples() {
    let mut m = ModelBuilder::new("deep", 0);
    let mut x = m.batch("x", [32]).unwrap();
    for i in 0..20 {
        x = m.layer(&format!("fc{i}"), Linear::new(32), x).unwrap();
        x = m.relu(x).unwrap();
    }
    m.output("y", x).unwrap();
    let graph = m.finish().unwrap();
    let backend = NdarrayBackend::new().threads(1);
    for kind in [
        ObserverKind::MinMax,
        ObserverKind::MovingAverage(0.01),
        ObserverKind::Percentile(0.999),
        ObserverKind::Kl,
        ObserverKind::Mse,
    ] {
        let mut config = Config::default().observer(kind);
        config.calibration.max_examples = usize::MAX;
        let peak = |examples: usize| {
            let data = Made(examples);
            let cx = Context::new()
                .with_backend(&backend)
                .with_calibration(&data);
            let base = ALLOCATOR.current_usage();
            ALLOCATOR.reset_peak_usage();
            let observed = config.observe(&graph, &cx).unwrap();
            assert_eq!(observed.examples(), examples as u64);
            ALLOCATOR.peak_usage() - base
        };
        // The first use of anything that stays.
        peak(64);
        let (few, many) = (peak(128), peak(12_800));
        assert!(many <= few + 4096, "{kind:?}: {few} bytes, then {many}");
    }
}
