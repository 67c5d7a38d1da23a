//! How the tree is worded: a sample of doc comments, and the counts that `tests/tests/tidy.rs` holds to a budget.

use modload_tests::prose::{OFFENDERS, product_doc_comments, repeated_type_names, sample, word_counts};

use crate::Result;
use crate::options::Options;

/// Prints COUNT doc comments, drawn with SEED, then the counts.
pub(crate) fn print(options: &Options) -> Result<()> {
    let (seed, count) = (options.number("seed")?, options.number("count")?);
    let comments = product_doc_comments();
    for comment in sample(&comments, count, seed) {
        println!("{}:{}", comment.path, comment.line);
        comment.text.lines().for_each(|line| println!("    {line}"));
        println!("    > {}\n", comment.item);
    }
    println!(
        "{} doc comments. In 1,000 words of each crate's, \"{}\", and \"it\", \"its\":",
        comments.len(),
        OFFENDERS.join("\", \"")
    );
    for (folder, words) in word_counts() {
        let per_thousand = |million: usize| format!("{}.{:02}", million / 1000, million % 1000 / 10);
        let (offenders, pronouns) = (words.offenders_per_million(), words.pronouns_per_million());
        println!("{folder:>14}: {:>6} words {:>6} {:>6}", words.words, per_thousand(offenders), per_thousand(pronouns));
    }
    let repeated = repeated_type_names();
    println!("{} type names are defined more than once:", repeated.len());
    for (name, places) in repeated {
        println!("{name:>14}: {}", places.join(" "));
    }
    Ok(())
}
