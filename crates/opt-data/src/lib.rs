//! Data sets, batches, transforms and augmentation for the opt model-optimization libraries.
//!
//! ```
//! use opt_data::{Augment, Batches, Dataset, Per, RandomShift, Standardize, digits, split};
//!
//! // Real handwritten digits; scaling fitted on the training part only.
//! let digits = digits()?;
//! let scaler = Standardize::fit(&digits.train, 0, Per::Dataset)?;
//! let train = digits.train.map(0, &scaler)?;
//! let (train, validation) = split(train, 0.1, 0)?;
//!
//! // One epoch of shuffled, augmented batches.
//! let augment = RandomShift::new(1.0)?;
//! for (step, batch) in Batches::new(&train, 32)?.shuffled(0, 0).enumerate() {
//!     let mut batch = batch?;
//!     augment.augment(&mut batch[0], 0, step as u64)?;
//!     assert_eq!(batch[0].shape()[1..], [1, 8, 8]);
//! }
//! assert_eq!(validation.len(), 144);
//! # Ok::<(), opt_core::Error>(())
//! ```
//!
//! A [`Dataset`] is a list of examples; an example is a list of tensors, the inputs of a model in
//! their order, then the targets. Everything random is a function of an explicit seed and a
//! counter.
//!
//! | what | where |
//! | --- | --- |
//! | examples in memory, parts of them | [`TensorDataset`], [`Subset`], [`split`], [`split_stratified`] |
//! | files | [`Csv`], [`npz`], [`mnist`] and [`idx`], [`cifar10`] and [`cifar100`]; the embedded [`digits`](fn@digits) |
//! | iteration | [`Batches`], read ahead with [`Batches::prefetch`] |
//! | cross-validation | [`KFold`], [`StratifiedKFold`] |
//! | classes | [`class_counts`], [`balanced_class_weights`], [`one_hot`] |
//! | transforms, fitted on the training part and applied to any part | [`transform`]: scaling, missing values, outliers, encoding, feature selection, [`Pca`], and [`TransformPipeline`] |
//! | random changes of training batches | [`augment`](mod@augment): shifts, rotations, flips, crops, noise, [`Cutout`], [`MixUp`], [`CutMix`] |

#![forbid(unsafe_code)]

pub mod augment;
mod batches;
mod blocks;
pub mod cifar;
mod classes;
mod csv;
mod digits;
mod fold;
pub mod idx;
pub mod npz;
mod prefetch;
mod source;
mod subset;
mod tensor_dataset;
pub mod transform;

pub use crate::csv::{Column, ColumnRef, Csv, Schema, Table};
pub use augment::{
    Augment, Chain, CutMix, Cutout, GaussianNoise, MixUp, RandomAffine, RandomCrop,
    RandomHorizontalFlip, RandomRotation, RandomShift, RandomVerticalFlip,
};
pub use batches::Batches;
pub use cifar::{CifarLabel, cifar10, cifar100};
pub use classes::{balanced_class_weights, class_counts, class_labels, one_hot};
pub use digits::{TrainTest, digits};
pub use fold::{Fold, KFold, StratifiedKFold};
pub use idx::mnist;
pub use opt_core::data::Dataset;
pub use opt_core::{Error, ErrorKind, Result};
pub use prefetch::Prefetch;
pub use subset::{Subset, split, split_every, split_stratified};
pub use tensor_dataset::TensorDataset;
pub use transform::{
    Fill, FittedPipeline, Imputer, Keep, LabelEncoder, Mapped, MinMax, OneHot, Ordinal, Outliers,
    Pca, Per, Robust, Scale, Score, SelectKBest, Standardize, Transform, TransformPipeline,
};

pub(crate) use opt_core::{ResultExt, Tensor};
