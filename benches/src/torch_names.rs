//! What PyTorch's modules call the variables of a model.

use std::collections::BTreeMap;

use opt_core::{Error, Result, Tensor};

/// The entries of a state dict.
///
/// Names are PyTorch's but for attention: `X.q_proj`, `X.k_proj` and `X.v_proj` are one matrix
/// `X.in_proj_weight` and one bias `X.in_proj_bias` in `torch.nn.MultiheadAttention`.
///
/// # Errors
/// If a projection has no queries, keys or values.
pub fn state_dict<'a>(
    variables: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
) -> Result<BTreeMap<String, Tensor>> {
    let mut entries = BTreeMap::new();
    let mut projections: BTreeMap<String, [Option<&Tensor>; 3]> = BTreeMap::new();
    for (name, tensor) in variables {
        match projection(name) {
            Some((joined, part)) => projections.entry(joined).or_default()[part] = Some(tensor),
            None => {
                entries.insert(name.to_string(), tensor.clone());
            }
        }
    }
    for (name, parts) in projections {
        let [Some(q), Some(k), Some(v)] = parts else {
            let message = "queries, keys and values are needed, and not all there";
            return Err(Error::invalid(message).at(name));
        };
        let joined = Tensor::concat(&[q.clone(), k.clone(), v.clone()], 0)?;
        entries.insert(name, joined);
    }
    Ok(entries)
}

/// The joined name of a projection's parameter, and which third it is.
fn projection(name: &str) -> Option<(String, usize)> {
    let (rest, parameter) = name.rsplit_once('.')?;
    let (attention, part) = rest.rsplit_once('.')?;
    let part = ["q_proj", "k_proj", "v_proj"]
        .iter()
        .position(|p| *p == part)?;
    Some((format!("{attention}.in_proj_{parameter}"), part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;
    use crate::protocol::Model;

    #[test]
    fn an_encoders_names_are_those_of_pytorchs_layer() {
        let model = Model::Encoder {
            vocabulary: 11,
            steps: 3,
            width: 4,
            heads: 2,
            feedforward: 6,
            layers: 1,
            classes: 5,
        };
        let graph = models::build(&model, 0).unwrap();
        let variables = graph.variables().map(|(_, v, t)| (v.name(), t));
        let entries = state_dict(variables).unwrap();
        let shapes: Vec<(&str, &[usize])> =
            entries.iter().map(|(n, t)| (&n[..], t.shape())).collect();
        // torch.nn.TransformerEncoderLayer(4, 2, 6).state_dict(), and what is around it.
        let expected: [(&str, &[usize]); 18] = [
            ("embedding.weight", &[11, 4]),
            ("fc.bias", &[5]),
            ("fc.weight", &[5, 4]),
            ("layers.0.linear1.bias", &[6]),
            ("layers.0.linear1.weight", &[6, 4]),
            ("layers.0.linear2.bias", &[4]),
            ("layers.0.linear2.weight", &[4, 6]),
            ("layers.0.norm1.bias", &[4]),
            ("layers.0.norm1.weight", &[4]),
            ("layers.0.norm2.bias", &[4]),
            ("layers.0.norm2.weight", &[4]),
            ("layers.0.self_attn.in_proj_bias", &[12]),
            ("layers.0.self_attn.in_proj_weight", &[12, 4]),
            ("layers.0.self_attn.out_proj.bias", &[4]),
            ("layers.0.self_attn.out_proj.weight", &[4, 4]),
            ("norm.bias", &[4]),
            ("norm.weight", &[4]),
            ("position", &[3, 4]),
        ];
        assert_eq!(shapes, expected);
    }

    #[test]
    fn queries_come_first_and_values_last() {
        let part = |x: f32| Tensor::new([1], [x]).unwrap();
        let (q, k, v, other) = (part(1.0), part(2.0), part(3.0), part(4.0));
        let variables = [
            ("a.v_proj.bias", &v),
            ("a.q_proj.bias", &q),
            ("a.k_proj.bias", &k),
            ("q_proj", &other),
        ];
        let entries = state_dict(variables).unwrap();
        assert_eq!(
            entries["a.in_proj_bias"].to_vec::<f32>().unwrap(),
            [1., 2., 3.]
        );
        assert_eq!(entries["q_proj"].to_vec::<f32>().unwrap(), [4.]);
        assert_eq!(entries.len(), 2);
        assert!(state_dict([("a.q_proj.bias", &q)]).is_err());
    }
}
