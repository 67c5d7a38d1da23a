//! The option `--call`: a function, its arguments, and the type of its result.

use std::fmt;
use std::str::FromStr;

use modload_control::protocol::ResultType;

/// A call: `SYMBOL[:TYPE][=ARG,..]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CallOption {
    pub(crate) symbol: String,
    pub(crate) result: ResultType,
    /// The arguments as written on the command line.
    pub(crate) written: Vec<String>,
    pub(crate) arguments: Vec<u64>,
}

impl FromStr for CallOption {
    type Err = String;

    fn from_str(text: &str) -> Result<CallOption, String> {
        let (name, arguments) = text.split_once('=').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let (symbol, kind) = name.split_once(':').unwrap_or((name, "i32"));
        if symbol.is_empty() {
            return Err("a call begins with the name of a function".into());
        }
        let result = match kind {
            "i32" => ResultType::I32,
            "u32" => ResultType::U32,
            "i64" => ResultType::I64,
            "u64" => ResultType::U64,
            "void" => ResultType::Void,
            other => return Err(format!("\"{other}\" is not a type: use i32, u32, i64, u64 or void")),
        };
        let written: Vec<String> = arguments.map_or_else(Vec::new, |text| text.split(',').map(str::to_owned).collect());
        if written.len() > 6 {
            return Err(format!("{} arguments: a call takes at most six", written.len()));
        }
        let number =
            |text: &String| integer(text).ok_or_else(|| format!("\"{text}\" is not an integer of at most 64 bits"));
        let arguments = written.iter().map(number).collect::<Result<_, _>>()?;
        Ok(CallOption { symbol: symbol.into(), result, written, arguments })
    }
}

/// Parses a 64-bit integer, decimal or hexadecimal with 0x, with an optional minus sign.
fn integer(text: &str) -> Option<u64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let number = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok()?,
        None if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    if !negative {
        return Some(number);
    }
    // The smallest value is i64::MIN.
    (number <= 1 << 63).then(|| number.wrapping_neg())
}

impl fmt::Display for CallOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.symbol, self.written.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::{CallOption, ResultType};

    fn call(text: &str) -> Result<(String, ResultType, Vec<u64>), String> {
        text.parse::<CallOption>().map(|call| (call.to_string(), call.result, call.arguments))
    }

    #[test]
    fn calls_are_read() {
        assert_eq!(call("add=2,3"), Ok(("add(2, 3)".into(), ResultType::I32, vec![2, 3])));
        assert_eq!(call("top:u32"), Ok(("top()".into(), ResultType::U32, vec![])));
        assert_eq!(call("f:void=0xff,-1"), Ok(("f(0xff, -1)".into(), ResultType::Void, vec![255, u64::MAX])));
    }

    #[test]
    fn what_is_no_call_is_refused() {
        for (text, why) in [
            ("", "begins with the name"),
            ("=1", "begins with the name"),
            ("f:float", "is not a type"),
            ("f=", "is not an integer"),
            ("f=1,", "is not an integer"),
            ("f=1.5", "is not an integer"),
            ("f=--1", "is not an integer"),
            ("f=0x", "is not an integer"),
            ("f=18446744073709551616", "is not an integer"),
            ("f=-9223372036854775809", "is not an integer"),
            ("f=1,2,3,4,5,6,7", "at most six"),
        ] {
            let refused = call(text).unwrap_err();
            assert!(refused.contains(why), "{text:?}: {refused}");
        }
    }
}
