//! The rules of the ops that move elements; those of ops that are each other's gradient share a
//! file.

mod concat;
mod pad;
mod repeat;
mod reshape;
mod slice;
mod squeeze;
mod transpose;

use crate::ops::Port;

const IN: Port = Port::Input(0);
const OUT: Port = Port::Output(0);
