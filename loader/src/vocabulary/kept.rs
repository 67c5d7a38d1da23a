//! What debuggers and profilers keep of a module and drop with it.

use std::fmt;

/// What an onlooker keeps of a module and drops with it.
pub trait Kept: Send + fmt::Debug {}

impl<T: Send + fmt::Debug> Kept for T {}

/// What all onlookers keep of a module.
#[derive(Default, Debug)]
pub(crate) struct AllShown {
    pub(crate) until_init: Vec<Box<dyn Kept>>,
    pub(crate) until_gone: Vec<Box<dyn Kept>>,
}
