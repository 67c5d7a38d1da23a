//! Selects functions: patterns for modules and functions, as in Linux's `set_ftrace_filter` and `set_ftrace_notrace`.

use std::str::FromStr;

use modload_abi::modinfo;
use thiserror::Error;

/// A pattern `[!][MODULE:]FUNCTION`. Each part may contain `*`, `?`, `[abc]`, `[a-c]` and `[!a]`. Without a module, the
/// pattern selects functions of all modules, including the host's own functions (module `vmlinux`). With `!`, the
/// matching functions are excluded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    leaves_out: bool,
    module: NamePattern,
    function: NamePattern,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum NamePattern {
    Any,
    Exactly(String),
    Matching(glob::Pattern),
}

/// A text that is not a pattern.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("\"{}\" is no pattern [!][MODULE:]FUNCTION: {why}", .pattern.escape_debug())]
pub struct BadPattern {
    /// The text.
    pub pattern: String,
    /// The problem.
    pub why: String,
}

impl NamePattern {
    fn parse(text: &str) -> Result<NamePattern, String> {
        if text.is_empty() {
            return Err("a name is missing".to_owned());
        }
        if text == "*" {
            return Ok(NamePattern::Any);
        }
        if !text.contains(['*', '?', '[']) {
            return Ok(NamePattern::Exactly(text.to_owned()));
        }
        glob::Pattern::new(text).map(NamePattern::Matching).map_err(|error| error.msg.to_owned())
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            NamePattern::Any => true,
            NamePattern::Exactly(exactly) => exactly == name,
            NamePattern::Matching(pattern) => pattern.matches(name),
        }
    }
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Pattern, BadPattern> {
        let (leaves_out, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
        let (module, function) = rest.split_once(':').unwrap_or(("*", rest));
        let part = |part: &str| NamePattern::parse(part).map_err(|why| BadPattern { pattern: text.to_owned(), why });
        // Module names have `_` for each `-` in their file names.
        let module = modinfo::canonical_pattern(module);
        Ok(Pattern { leaves_out, module: part(&module)?, function: part(function)? })
    }
}

/// A set of patterns. A function is selected if it matches a pattern and no excluding pattern. If all patterns are
/// excluding, all other functions are selected.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Filter {
    patterns: Vec<Pattern>,
}

impl FromIterator<Pattern> for Filter {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> Filter {
        Filter { patterns: patterns.into_iter().collect() }
    }
}

impl From<Pattern> for Filter {
    fn from(pattern: Pattern) -> Filter {
        Filter { patterns: vec![pattern] }
    }
}

impl FromStr for Filter {
    type Err = BadPattern;

    /// Parses one pattern.
    fn from_str(text: &str) -> Result<Filter, BadPattern> {
        Ok(Filter::from(text.parse::<Pattern>()?))
    }
}

impl Filter {
    /// Returns whether a function is selected.
    #[must_use]
    pub fn matches(&self, module: &str, function: &str) -> bool {
        self.of_module(module).matches(function)
    }

    /// Returns the part of the filter that applies to one module.
    pub(crate) fn of_module<'f>(&'f self, module: &str) -> InModule<'f> {
        let mut found = InModule { all: true, takes: Vec::new(), leaves_out: Vec::new() };
        for pattern in &self.patterns {
            let here = pattern.module.matches(module);
            found.all &= pattern.leaves_out;
            let parts = if pattern.leaves_out { &mut found.leaves_out } else { &mut found.takes };
            parts.extend(here.then_some(&pattern.function));
        }
        found
    }
}

/// The patterns that apply to one module.
#[derive(Debug)]
pub(crate) struct InModule<'f> {
    /// Whether all functions are selected that are not excluded.
    all: bool,
    takes: Vec<&'f NamePattern>,
    leaves_out: Vec<&'f NamePattern>,
}

impl InModule<'_> {
    pub(crate) fn matches(&self, function: &str) -> bool {
        let any = |parts: &[&NamePattern]| parts.iter().any(|part| part.matches(function));
        (self.all || any(&self.takes)) && !any(&self.leaves_out)
    }
}

#[cfg(test)]
mod tests {
    use super::{Filter, Pattern};

    /// Checks patterns, a function as `module:function`, and whether it is selected.
    fn check(patterns: &[&str], function: &str, expected: bool) {
        let filter: Filter = patterns.iter().map(|pattern| pattern.parse::<Pattern>().unwrap()).collect();
        let (module, name) = function.split_once(':').unwrap();
        assert_eq!(filter.matches(module, name), expected, "{patterns:?} {function}");
    }

    #[test]
    fn a_function_is_meant_by_module_and_name() {
        for (patterns, function, expected) in [
            (&["*"][..], "greet:greet_hello", true),
            (&["greet_*"], "greet:greet_hello", true),
            (&["greet_*"], "other:greet_hello", true),
            (&["greet:*"], "greet:x", true),
            (&["my-mod:*"], "my_mod:x", true),
            (&["greet:*"], "greeter:x", false),
            (&["gre?t:h[a-e]llo"], "great:hello", true),
            (&["gre?t:h[!a-e]llo"], "great:hello", false),
            (&["gre?t:h[!a-e]llo"], "great:hullo", true),
            (&["hello"], "greet:hello2", false),
            (&["a", "b"], "m:b", true),
            (&["*", "!m:b*"], "m:bar", false),
            (&["*", "!m:b*"], "n:bar", true),
            (&["!*_slow"], "m:f", true),
            (&["!*_slow"], "m:f_slow", false),
            (&["n:*", "!*_slow"], "m:f", false),
            (&[], "m:f", true),
        ] {
            check(patterns, function, expected);
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_by_name() {
        for (text, why) in [
            ("", "a name is missing"),
            ("!", "a name is missing"),
            ("greet:", "a name is missing"),
            (":f", "a name is missing"),
            ("f[", "invalid range pattern"),
            ("a***b", "wildcards are either regular `*` or recursive `**`"),
        ] {
            let refused = text.parse::<Pattern>().unwrap_err();
            assert_eq!(refused.why, why, "{text}");
            assert!(refused.to_string().contains(&format!("{text:?} is no pattern")), "{refused}");
        }
    }
}
