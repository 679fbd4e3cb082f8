//! Matrix factorization for recommendations (Koren, Bell & Volinsky 2009).

use crate::nn::{Embedding, Init, ModelBuilder};
use crate::{DType, Graph, Result};

/// The rating of an item by a user: `mean + user bias + item bias + user factors . item
/// factors`. Inputs `user` and `item`, indices `[batch]` (`i64`); output `rating` `[batch]`.
/// The mean starts at `mean`, the biases at 0, the factors normal with standard deviation 0.1.
///
/// # Errors
/// If the mean is not finite.
pub fn matrix_factorization(
    users: usize,
    items: usize,
    factors: usize,
    mean: f64,
    seed: u64,
) -> Result<Graph> {
    let mut m = ModelBuilder::new("matrix_factorization", seed);
    let user = m.batch_of(DType::I64, "user", [])?;
    let item = m.batch_of(DType::I64, "item", [])?;
    let start = Init::Normal {
        mean: 0.0,
        std: 0.1,
    };
    let p = m.layer(
        "user_factors",
        Embedding::new(users, factors).init(start),
        user,
    )?;
    let q = m.layer(
        "item_factors",
        Embedding::new(items, factors).init(start),
        item,
    )?;
    let product = m.mul(p, q)?;
    let mut rating = m.sum(product, &[1], false)?;
    for (name, size, index) in [("user_bias", users, user), ("item_bias", items, item)] {
        let bias = m.parameter(name, [size], &Init::ZEROS)?;
        let bias = m.gather(bias, index, 0)?;
        rating = m.add(rating, bias)?;
    }
    let mean = m.parameter("mean", [], &Init::Constant(mean))?;
    let rating = m.add(rating, mean)?;
    m.output("rating", rating)?;
    m.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_count_adds_up() {
        let graph = matrix_factorization(50, 70, 8, 3.5, 0).unwrap();
        assert_eq!(graph.parameter_count(), (50 + 70) * 9 + 1);
        assert!(matrix_factorization(5, 7, 2, f64::NAN, 0).is_err());
    }
}
