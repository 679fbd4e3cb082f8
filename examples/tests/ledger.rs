//! The large effects of the ledger, those of a factor of two and more, in a short run. The ledger
//! itself takes ten divisions and all epochs: `cargo run --release --example reproduce`.

use opt_core::observer::Silent;
use opt_examples::ledger::{Claim, Figures, Lab, claims, document, measure};

/// The figures of a claim on two divisions with a part of the epochs.
fn figures(name: &str, effort: f64) -> Figures {
    let all = claims();
    let claim = all.iter().find(|claim| claim.name() == name).unwrap();
    let chosen: [&dyn Claim; 1] = [claim.as_ref()];
    let entries = measure(&chosen, 0..2, effort, 1, &mut Silent).unwrap();
    let text = document(&entries, 2);
    let entry = entries.into_iter().next().unwrap();
    for series in &entry.figures.series {
        assert_eq!(series.values.len(), 2);
        assert!(text.contains(series.name));
    }
    entry.figures
}

#[test]
fn soft_targets_teach_a_digit_that_was_never_seen() {
    let figures = figures("missing-digit", 0.5);
    let of = |name: &str| figures.of(name).mean();
    let soft = of("soft targets, no threes, bias corrected: recognised");
    assert!(soft > 85.0, "{soft}");
    assert_eq!(of("labels, no threes: recognised"), 0.0);
    let hard = of("labels, no threes, bias corrected: recognised");
    assert!(100.0 - hard > 2.0 * (100.0 - soft), "{hard} and {soft}");
}

#[test]
fn a_few_images_are_enough_with_soft_targets() {
    let figures = figures("few-images", 0.5);
    let of = |name: &str| figures.of(name).mean();
    let (hard, soft) = (of("90 images, labels"), of("90 images, soft targets"));
    assert!(hard > 1.5 * soft, "{hard} and {soft}");
}

#[test]
fn rounding_to_two_bits_destroys_what_training_keeps() {
    let figures = figures("two-bits", 0.3);
    let of = |name: &str| figures.of(name).mean();
    let dense = of("32-bit weights");
    let nearest = of("2-bit weights, rounded to nearest");
    let learned = of("2-bit weights, trained, scales learned");
    assert!(nearest > 2.0 * learned, "{nearest} and {learned}");
    assert!(learned < dense + 2.0, "{learned} and {dense}");
}

#[test]
fn gptq_keeps_what_rounding_to_two_bits_loses() {
    let figures = figures("gptq", 0.3);
    let of = |name: &str| figures.of(name).mean();
    let dense = of("32-bit weights");
    let (nearest, gptq) = (of("2 bits, rounded to nearest"), of("2 bits, GPTQ"));
    assert!(
        gptq - dense < 0.5 * (nearest - dense),
        "{gptq}, {nearest} and {dense}"
    );
    let outputs = of("3 bits: output error, GPTQ of nearest");
    assert!(outputs < 20.0, "{outputs}");
}

#[test]
fn learned_scales_bring_two_bits_back_and_uneven_channels_are_repaired() {
    let few = figures("few-bits", 0.3);
    let of = |name: &str| few.of(name).mean();
    let nearest = of("2 bits, rounded after training");
    let learned = of("2 bits, trained");
    assert!(nearest > 2.0 * learned, "{nearest} and {learned}");
    let uneven = figures("equalization", 0.2);
    let of = |name: &str| uneven.of(name).mean();
    let exact = of("32 bits");
    let broken = of("uneven channels, 8 bits, one scale a tensor");
    let repaired = of("uneven channels, 8 bits, equalized and biases corrected");
    assert!(broken > exact + 20.0, "{broken} and {exact}");
    assert!(repaired < exact + 2.0, "{repaired} and {exact}");
}

#[test]
fn learned_rounding_makes_smaller_errors_than_the_nearest() {
    let figures = figures("rounding", 0.2);
    let share = figures.of("error of the layers' outputs, learned against nearest");
    assert!(share.mean() < 85.0, "{}", share.mean());
}

#[test]
fn a_ticket_learns_faster_than_the_same_mask_with_other_values() {
    let figures = figures("lottery", 0.4);
    let of = |name: &str| figures.of(name).mean();
    let ticket = of("after 10 epochs: initial values");
    let control = of("after 10 epochs: initialised anew");
    assert!(control > 2.0 * ticket, "{control} and {ticket}");
}

#[test]
fn a_division_is_half_and_half_and_depends_on_its_number() {
    let sizes = |lab: &Lab| (lab.train.fields()[1].len(), lab.test.fields()[1].len());
    let (a, b) = (Lab::new(0, 1.0).unwrap(), Lab::new(1, 1.0).unwrap());
    assert_eq!(sizes(&a), (898, 899));
    assert_eq!(a.train.fields()[0].shape(), [898, 64]);
    assert_ne!(a.train.fields()[1], b.train.fields()[1]);
    assert_eq!(
        a.train.fields()[0],
        Lab::new(0, 1.0).unwrap().train.fields()[0]
    );
    let sum = |lab: &Lab| {
        let parts = [&lab.train, &lab.test];
        let sums = parts.map(|p| p.fields()[0].to_f64s().iter().sum::<f64>());
        sums[0] + sums[1]
    };
    assert!((sum(&a) - sum(&b)).abs() < 1e-6, "the same images");
    let error = measure(&[], 0..1, 1.0, 1, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("2 divisions"), "{error}");
}
