//! Who this library is compared with.

use serde_json::Value;

/// A program that speaks the protocol of `benches/src/protocol.rs`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its name, which it also gets as the `variant` of a load.
    pub(crate) name: &'static str,
    pub(crate) program: Program,
    pub(crate) takes: Takes,
    /// What it is, for the reader of the tables.
    pub(crate) about: &'static str,
}

/// What to start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// A script in `benches/peers`.
    Python(&'static str),
    /// A feature of the package in `benches/peers/rust`, and the flags for rustc that the library
    /// asks for.
    Rust {
        feature: &'static str,
        flags: Option<&'static str>,
    },
}

/// The workloads that a peer is asked for; of these it may still refuse some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Models that are built, steps that train.
    Training,
    /// Models that are built.
    Built,
    /// Models that are files.
    Files,
    /// Everything on processors.
    All,
}

impl Peer {
    pub(crate) fn takes(&self, row: &Value, device: &str) -> bool {
        let file = row["mode"] == "onnx";
        match self.takes {
            Takes::Training => row["mode"] == "train",
            Takes::Built => !file,
            Takes::Files => file && device == "cpu",
            Takes::All => device == "cpu",
        }
    }
}

/// Those that are asked for without an option.
pub(crate) const DEFAULT: [&str; 2] = ["torch", "onnxruntime"];

/// All peers.
pub(crate) const PEERS: [Peer; 8] = [
    Peer {
        name: "torch",
        program: Program::Python("torch_worker.py"),
        takes: Takes::Built,
        about: "eager PyTorch",
    },
    Peer {
        name: "torch-fused",
        program: Program::Python("torch_worker.py"),
        takes: Takes::Training,
        about: "eager PyTorch with fused optimizers",
    },
    Peer {
        name: "torch-compile",
        program: Program::Python("torch_worker.py"),
        takes: Takes::Built,
        about: "PyTorch, model and loss by `torch.compile`, with fused optimizers",
    },
    Peer {
        name: "onnxruntime",
        program: Program::Python("onnxruntime_worker.py"),
        takes: Takes::Files,
        about: "ONNX Runtime, by its Python package",
    },
    Peer {
        name: "rten",
        program: Program::Rust {
            feature: "rten",
            flags: None,
        },
        takes: Takes::Files,
        about: "rten",
    },
    Peer {
        name: "tract",
        program: Program::Rust {
            feature: "tract",
            flags: None,
        },
        takes: Takes::Files,
        about: "tract-onnx",
    },
    Peer {
        name: "candle",
        program: Program::Rust {
            feature: "candle",
            flags: Some("-C target-cpu=native"),
        },
        takes: Takes::All,
        about: "candle; files by candle-onnx",
    },
    Peer {
        name: "burn",
        program: Program::Rust {
            feature: "burn",
            flags: None,
        },
        takes: Takes::All,
        about: "burn on its backend flex",
    },
];

/// Where a peer stands among all.
pub(crate) fn place(name: &str) -> usize {
    PEERS
        .iter()
        .position(|p| p.name == name)
        .unwrap_or(PEERS.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn peers_get_the_rows_that_they_can_have() {
        let taking = |row: Value, device: &str| -> Vec<&str> {
            let takes = PEERS.iter().filter(|p| p.takes(&row, device));
            takes.map(|p| p.name).collect()
        };
        let train = json!({"mode": "train"});
        let torch = ["torch", "torch-fused", "torch-compile"];
        assert_eq!(taking(train.clone(), "cuda:0"), torch);
        assert_eq!(
            taking(train, "cpu"),
            [&torch[..], &["candle", "burn"]].concat()
        );
        let forward = ["torch", "torch-compile", "candle", "burn"];
        assert_eq!(taking(json!({"mode": "forward"}), "cpu"), forward);
        let files = ["onnxruntime", "rten", "tract", "candle", "burn"];
        assert_eq!(taking(json!({"mode": "onnx"}), "cpu"), files);
        assert!(DEFAULT.iter().all(|name| place(name) < PEERS.len()));
    }
}
