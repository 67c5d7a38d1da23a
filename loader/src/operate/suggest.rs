//! Suggestions for misspelt symbols ("did you mean"). The cost is bounded: only names of similar length with the same
//! first letter are compared, and the number of comparisons in a load has a limit.

use strsim::normalized_damerau_levenshtein;

/// Longer names get no suggestion: the time of a comparison is the product of both lengths. Longer names are mangled ones, which
/// are seldom misspelt.
const LONGEST: usize = 64;

/// How many undefined symbols of a load get a suggestion.
const SYMBOLS: usize = 8;

/// How many names are compared in a load.
const COMPARISONS: usize = 2000;

/// How alike names must be, from 0 to 1.
const ALIKE: f64 = 0.7;

/// All known names, and the comparisons that are left.
#[derive(Debug)]
pub(crate) struct Suggestions<N> {
    /// Calls the argument with every known name.
    names: N,
    symbols: usize,
    comparisons: usize,
}

impl<N: Fn(&mut dyn FnMut(&str))> Suggestions<N> {
    pub(crate) fn among(names: N) -> Suggestions<N> {
        Suggestions { names, symbols: SYMBOLS, comparisons: COMPARISONS }
    }

    /// Returns the most similar name, or `None` if no name is similar enough. Of equally similar names the first by the alphabet.
    pub(crate) fn nearest(&mut self, symbol: &str) -> Option<String> {
        if symbol.is_empty() || symbol.len() > LONGEST || self.symbols == 0 || self.comparisons == 0 {
            return None;
        }
        self.symbols -= 1;
        let mut best: Option<(f64, String)> = None;
        let left = &mut self.comparisons;
        (self.names)(&mut |name| {
            if *left == 0 || !may_be_alike(symbol, name) {
                return;
            }
            *left -= 1;
            let likeness = normalized_damerau_levenshtein(symbol, name);
            let is_better = |(known, of): &(f64, String)| likeness > *known || (likeness == *known && name < of);
            if likeness >= ALIKE && best.as_ref().is_none_or(is_better) {
                best = Some((likeness, name.to_owned()));
            }
        });
        best.map(|(_, name)| name)
    }
}

/// Whether two names are worth a comparison: same first letter after underscores, and similar length.
fn may_be_alike(symbol: &str, name: &str) -> bool {
    let first = |name: &str| name.bytes().find(|byte| *byte != b'_');
    let (short, long) = (symbol.len().min(name.len()), symbol.len().max(name.len()));
    // Each additional byte is one edit, and at most 30 % may differ.
    long <= LONGEST && 10 * (long - short) <= 3 * long && first(symbol) == first(name)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::{COMPARISONS, LONGEST, SYMBOLS, Suggestions};

    fn nearest(symbol: &str, names: &[&str]) -> Option<String> {
        Suggestions::among(|each: &mut dyn FnMut(&str)| names.iter().for_each(|name| each(name))).nearest(symbol)
    }

    #[test]
    fn the_nearest_is_found() {
        let names = ["printk", "print", "sprintf", "answer", "__answer", "sprint"];
        for (symbol, expected) in [
            ("printkk", Some("printk")),
            ("anwser", Some("answer")),
            ("_answer", Some("__answer")),
            ("frobnicate", None),
            // Another first letter is another word.
            ("qrintk", None),
            ("", None),
        ] {
            assert_eq!(nearest(symbol, &names).as_deref(), expected, "{symbol}");
        }
    }

    #[test]
    fn work_is_bounded_by_length_first_letter_and_count() {
        let names: Vec<String> = (0..100_000).map(|number| format!("symbol_{number:06}")).collect();
        let walks = Cell::new(0);
        let mut suggestions = Suggestions::among(|each: &mut dyn FnMut(&str)| {
            walks.set(walks.get() + 1);
            names.iter().for_each(|name| each(name));
        });
        // Names that are too long, begin differently, or have a very different length are not compared.
        for symbol in ["s".repeat(8 << 20), "s".repeat(LONGEST + 1)] {
            assert_eq!(suggestions.nearest(&symbol), None);
        }
        assert_eq!((walks.get(), suggestions.comparisons), (0, COMPARISONS));
        for symbol in ["xymbol_000001", "s", &"s".repeat(LONGEST)] {
            assert_eq!(suggestions.nearest(symbol), None, "{symbol}");
        }
        assert_eq!(suggestions.comparisons, COMPARISONS);
        // A second bound limits all comparisons of a load together.
        for _ in 0..1000 {
            suggestions.nearest("symbol_00000x");
        }
        assert_eq!((suggestions.comparisons, walks.get()), (0, 4));
        let mut few = Suggestions::among(|each: &mut dyn FnMut(&str)| {
            walks.set(walks.get() + 1);
            each("other");
        });
        walks.set(0);
        (0..1000).for_each(|_| assert_eq!(few.nearest("symbol"), None));
        assert_eq!(walks.get(), SYMBOLS);
    }
}
