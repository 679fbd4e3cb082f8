//! Matrix products.

use super::{differences, signed};
use crate::Case;

/// The cases of the family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let leads: [(&[usize], &[usize]); 6] = [
        (&[], &[]),
        (&[2], &[]),
        (&[], &[2]),
        (&[2], &[2]),
        (&[2, 1], &[3]),
        (&[2, 2], &[]),
    ];
    for (i, (lead_a, lead_b)) in leads.into_iter().enumerate() {
        for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
            let end = |t, rows: usize, columns| match t {
                false => [rows, columns],
                true => [columns, rows],
            };
            let x = signed(&[lead_a, &end(ta, 2, 3)].concat(), 40 + i as u64, 0.1, 1.0);
            let y = signed(&[lead_b, &end(tb, 3, 4)].concat(), 50 + i as u64, 0.1, 1.0);
            let name = format!("gradient/MatMul {:?} {:?} {ta} {tb}", x.shape(), y.shape());
            cases.push(differences(&name, vec![x, y], |b, x| {
                b.matmul_t(x[0], x[1], ta, tb)
            }));
        }
    }
    cases
}
