//! Options of the form `name=value`.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::Result;

/// The options of one call, including the defaults.
pub(crate) struct Options(BTreeMap<&'static str, String>);

impl Options {
    pub(crate) fn parse(known: &[(&'static str, &'static str)], arguments: &[String]) -> Result<Options> {
        let mut values: BTreeMap<_, _> = known.iter().map(|&(name, default)| (name, default.to_owned())).collect();
        for argument in arguments {
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            let slot = values.get_mut(name).ok_or_else(|| format!("no such option: {argument}"))?;
            value.clone_into(slot);
        }
        Ok(Options(values))
    }

    /// Returns the value of an option of this command.
    pub(crate) fn text(&self, name: &str) -> &str {
        &self.0[name]
    }

    pub(crate) fn number<N: FromStr>(&self, name: &str) -> Result<N> {
        let value = self.text(name);
        value.parse().map_err(|_| format!("{name} takes a number, not {value:?}").into())
    }
}
