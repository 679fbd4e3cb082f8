//! Masks: applying them, counting them, and which entries they keep.

use opt_core::{Fact, Graph, Result, Tensor, ValueId};

/// A tensor with zeros where a mask of its shape is false.
pub(crate) fn masked(content: &Tensor, keep: &[bool]) -> Result<Tensor> {
    let data: Vec<f64> = content
        .to_f64s()
        .into_iter()
        .zip(keep)
        .map(|(v, &keep)| if keep { v } else { 0.0 })
        .collect();
    Tensor::from_f64s(content.dtype(), content.shape(), &data)
}

/// Replaces the content of a variable, with zeros where the graph has a mask for it.
pub(crate) fn set_masked(graph: &mut Graph, id: ValueId, content: &Tensor) -> Result<()> {
    let content = match graph.facts().mask(id) {
        Some(mask) => masked(content, &mask.to_vec_bool()?)?,
        None => content.clone(),
    };
    graph.set_variable(id, content)
}

/// Sets a variable to zero where `keep` is false, and records that as its mask.
pub(crate) fn set_mask(graph: &mut Graph, id: ValueId, keep: &[bool]) -> Result<()> {
    let content = graph.value(id).tensor().expect("a variable").clone();
    let mask = Tensor::from_bools(content.shape(), keep)?;
    graph.set_variable(id, masked(&content, keep)?)?;
    graph.facts_mut().insert(id, Fact::Mask(mask));
    Ok(())
}

/// The entries that a graph's masks remove, and those that they are for.
pub(crate) fn masked_entries(graph: &Graph) -> Result<(usize, usize)> {
    let (mut gone, mut total) = (0, 0);
    for (_, fact) in graph.facts().iter() {
        if let Fact::Mask(mask) = fact {
            gone += mask.to_vec_bool()?.iter().filter(|keep| !**keep).count();
            total += mask.len();
        }
    }
    Ok((gone, total))
}

/// Which entries of some lists stay when the `count` lowest scores of all go; ties go by position.
pub(crate) fn keep_all_but_lowest(lists: &[&[f64]], count: usize) -> Vec<Vec<bool>> {
    let mut all: Vec<f64> = lists.iter().flat_map(|s| s.iter().copied()).collect();
    let count = count.min(all.len());
    if count == 0 {
        return lists.iter().map(|s| vec![true; s.len()]).collect();
    }
    let (_, &mut bound, _) = all.select_nth_unstable_by(count - 1, f64::total_cmp);
    let below = all[..count].iter().filter(|s| **s < bound).count();
    let mut ties = count - below;
    lists
        .iter()
        .map(|scores| {
            let stays = |&s: &f64| {
                let tie = s == bound && ties > 0;
                ties -= usize::from(tie);
                s >= bound && !tie
            };
            scores.iter().map(stays).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn selection_is_that_of_a_stable_sort(
            lists in proptest::collection::vec(proptest::collection::vec(-1i8..6, 0..9), 1..4),
            share in 0.0f64..=1.0,
        ) {
            let lists: Vec<Vec<f64>> =
                lists.into_iter().map(|l| l.into_iter().map(f64::from).collect()).collect();
            let slices: Vec<&[f64]> = lists.iter().map(Vec::as_slice).collect();
            let total: usize = lists.iter().map(Vec::len).sum();
            let count = (share * total as f64) as usize;
            let mut order: Vec<(usize, usize)> = lists
                .iter()
                .enumerate()
                .flat_map(|(l, list)| (0..list.len()).map(move |i| (l, i)))
                .collect();
            order.sort_by(|a, b| lists[a.0][a.1].total_cmp(&lists[b.0][b.1]));
            let mut expected: Vec<Vec<bool>> = lists.iter().map(|l| vec![true; l.len()]).collect();
            for &(l, i) in &order[..count] {
                expected[l][i] = false;
            }
            prop_assert_eq!(keep_all_but_lowest(&slices, count), expected);
        }
    }
}
