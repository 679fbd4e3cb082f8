//! Variables that a run writes over: every reader sees the old content, and a run that fails leaves
//! them as they were.

use opt_core::{Backend, CompileSpec, DType, GraphBuilder, Result, Session, Tensor, TensorType};

use super::fusion::noise;
use crate::{IntPath, NdarrayBackend, compile};

/// What a session's variables hold.
fn contents(session: &dyn Session, ids: &[opt_core::ValueId]) -> Vec<Vec<f32>> {
    let content = |&id| session.variable(id).unwrap().to_vec::<f32>().unwrap();
    ids.iter().map(content).collect()
}

#[test]
fn momentum_is_updated_in_place() -> Result<()> {
    let mut b = GraphBuilder::new("momentum");
    let ty = TensorType::new(DType::F32, [40, 50]);
    let g = b.input("g", ty)?;
    let p = b.variable("p", noise(&[40, 50], 1))?;
    let m = b.variable("m", noise(&[40, 50], 2))?;
    let kept = b.mul_scalar(m, 0.9)?;
    let new_m = b.add(kept, g)?;
    let step = b.mul_scalar(new_m, 0.1)?;
    let new_p = b.sub(p, step)?;
    b.assign(m, new_m)?;
    b.assign(p, new_p)?;
    b.output("step", step)?;
    let graph = b.finish()?;
    let plan = compile::compile(&graph, &CompileSpec::new(), 1, IntPath::Auto)?;
    assert!(plan.assignments.is_empty(), "{:?}", plan.assignments);

    let executable = NdarrayBackend::new()
        .threads(1)
        .compile(&graph, &CompileSpec::new())?;
    let mut session = executable.session()?;
    let mut expected = contents(&*session, &[p, m]);
    for round in 0..3 {
        let g = noise(&[40, 50], 5 + round);
        for (i, g) in g.to_vec::<f32>()?.into_iter().enumerate() {
            expected[1][i] = expected[1][i] * 0.9 + g;
            expected[0][i] -= expected[1][i] * 0.1;
        }
        session.run(&[g])?;
        assert_eq!(contents(&*session, &[p, m]), expected);
    }
    // Another session has variables of its own.
    let other = executable.session()?;
    assert_ne!(contents(&*other, &[p, m]), expected);
    Ok(())
}

#[test]
fn readers_see_the_old_content() -> Result<()> {
    let mut b = GraphBuilder::new("readers");
    let [a, c, d, e] = ["a", "c", "d", "e"].map(|name| {
        let seed = u64::from(name.as_bytes()[0]);
        b.variable(name, noise(&[600], seed)).unwrap()
    });
    // Each needs the other.
    let sum = b.add(a, c)?;
    let difference = b.sub(a, c)?;
    b.assign(a, sum)?;
    b.assign(c, difference)?;
    // An output needs what is assigned to, after the update too.
    let twice = b.mul_scalar(d, 2.0)?;
    b.assign(d, twice)?;
    b.output("old", d)?;
    b.output("new", twice)?;
    // Through another shape, and by a kernel that can fail.
    let square = b.reshape(e, &[20usize, 30][..])?;
    let product = b.sum(square, &[0], false)?;
    let half = b.mul_scalar(e, 0.5)?;
    b.assign(e, half)?;
    b.output("sums", product)?;
    let graph = b.finish()?;
    let ids = [a, c, d, e];
    let executable = NdarrayBackend::new().compile(&graph, &CompileSpec::new())?;
    let mut session = executable.session()?;
    for _ in 0..3 {
        let old = contents(&*session, &ids);
        let outputs = session.run(&[])?;
        let new = contents(&*session, &ids);
        for i in 0..600 {
            assert_eq!(new[0][i], old[0][i] + old[1][i]);
            assert_eq!(new[1][i], old[0][i] - old[1][i]);
            assert_eq!(new[2][i], old[2][i] * 2.0);
            assert_eq!(new[3][i], old[3][i] * 0.5);
        }
        assert_eq!(outputs[0].to_vec::<f32>()?, old[2]);
        assert_eq!(outputs[1].to_vec::<f32>()?, new[2]);
        let sums = outputs[2].to_vec::<f32>()?;
        for (j, &sum) in sums.iter().enumerate() {
            let expected: f32 = (0..20).map(|i| old[3][i * 30 + j]).sum();
            assert!((sum - expected).abs() < 1e-4);
        }
    }
    Ok(())
}

#[test]
fn a_run_that_fails_changes_no_variable() -> Result<()> {
    let mut b = GraphBuilder::new("fails");
    let labels = b.input("labels", TensorType::new(DType::I64, [4]))?;
    let p = b.variable("p", noise(&[4, 100], 1))?;
    let new = b.mul_scalar(p, 0.5)?;
    b.assign(p, new)?;
    // After the update in the graph, and it refuses labels.
    let logits = b.constant(noise(&[4, 3], 2));
    let loss = b.softmax_cross_entropy(logits, labels)?;
    b.output("loss", loss)?;
    let graph = b.finish()?;
    let executable = NdarrayBackend::new().compile(&graph, &CompileSpec::new())?;
    let mut session = executable.session()?;
    let before = contents(&*session, &[p]);
    let bad = Tensor::new([4], vec![0i64, 1, 2, 3])?;
    assert!(session.run(&[bad]).is_err());
    assert_eq!(contents(&*session, &[p]), before);
    session.run(&[Tensor::new([4], vec![0i64, 1, 2, 2])?])?;
    assert_ne!(contents(&*session, &[p]), before);
    Ok(())
}
