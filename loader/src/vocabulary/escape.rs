//! Escapes names from files for messages: a name must not control the terminal of the reader.

/// A name from a file, fit for a terminal.
pub(crate) fn escaped(name: &[u8]) -> String {
    let as_is = |byte: &u8| matches!(byte, b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z');
    match std::str::from_utf8(name) {
        // The fast path for nearly all names: every load escapes the names of sections.
        Ok(name) if name.as_bytes().iter().all(as_is) => name.to_owned(),
        // Quotes are harmless to a terminal, and names of people such as O'Neill contain them.
        Ok(name) => name.chars().fold(String::new(), |mut text, c| {
            match c {
                '\'' | '"' => text.push(c),
                c => text.extend(c.escape_debug()),
            }
            text
        }),
        Err(_) => name.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn names_cannot_steer_a_terminal() {
        for (name, expected) in [
            (&b".text"[..], ".text"),
            (b"O'Neill \"x\"", "O'Neill \"x\""),
            (b"a\x1b[31mb\n", "a\\u{1b}[31mb\\n"),
            ("caf\u{e9}\u{202e}".as_bytes(), "caf\u{e9}\\u{202e}"),
            (b"\xff\x00", "\\xff\\x00"),
        ] {
            assert_eq!(escaped(name), expected);
        }
    }
}
