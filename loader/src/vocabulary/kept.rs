//! Data that debuggers and profilers keep for a module, dropped with the module.

use std::fmt;

/// Data that an onlooker keeps for a module, dropped with the module.
pub trait Kept: Send + fmt::Debug {}

impl<T: Send + fmt::Debug> Kept for T {}

/// Data that all onlookers keep for a module.
#[derive(Default, Debug)]
pub(crate) struct AllShown {
    pub(crate) until_init: Vec<Box<dyn Kept>>,
    pub(crate) until_gone: Vec<Box<dyn Kept>>,
}
