//! Models as their authors publish them: a folder with a configuration and weights.
//!
//! Files in ONNX carry their structure; checkpoints of the Hugging Face Hub carry weights only, and
//! the structure is in the code of a library. A module here is that code, as a graph.
//!
//! ```no_run
//! use opt_onnx::hub::bert;
//!
//! let model = bert::load("all-MiniLM-L6-v2")?;
//! println!("{} parameters", model.graph.parameter_count());
//! # Ok::<(), opt_core::Error>(())
//! ```

pub mod bert;
