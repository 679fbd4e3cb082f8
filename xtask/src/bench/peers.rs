//! Who this library is compared with.

/// A program that speaks the protocol of `benches/src/protocol.rs`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its name, which it also gets as the `variant` of a load.
    pub(crate) name: &'static str,
    /// The script in `benches/peers`.
    pub(crate) script: &'static str,
}

/// All peers; the first is the default. A program other than a Python script, or one that cannot
/// run some rows, needs a field here that says so.
pub(crate) const PEERS: [Peer; 2] = [
    Peer {
        name: "torch",
        script: "torch_worker.py",
    },
    Peer {
        name: "torch-fused",
        script: "torch_worker.py",
    },
];
