//! Rust text with everything blanked that is not code, so that rules can look for words in what is left.

/// The text with comments, strings and character literals as spaces. Line breaks stay where they were.
pub fn code_only(text: &str) -> String {
    let mut scan = Scan { rest: text, out: String::with_capacity(text.len()), before: ' ' };
    while let Some(next) = scan.rest.chars().next() {
        let literal = [line_comment, block_comment, raw_string, string, character]
            .iter()
            .find_map(|measure| measure(scan.rest, scan.before));
        match literal {
            Some(length) => scan.blank(length),
            None => scan.keep(next),
        }
    }
    scan.out
}

/// The lines of [`code_only`] text that are not inside an item under `#[cfg(test)]`.
pub fn lines_without_tests(code: &str) -> usize {
    let mut lines = 0;
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, tests) = rest.split_at(at);
        lines += before.lines().count();
        rest = tests.get(item_length(tests)..).unwrap_or("");
    }
    lines + rest.lines().count()
}

/// The length in bytes of the item at the start: to its `;`, or to the brace that closes its first one.
fn item_length(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, sign) in text.char_indices() {
        match sign {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

struct Scan<'a> {
    rest: &'a str,
    out: String,
    before: char,
}

impl Scan<'_> {
    fn keep(&mut self, next: char) {
        self.out.push(next);
        self.before = next;
        self.rest = self.rest.get(next.len_utf8()..).unwrap_or("");
    }

    fn blank(&mut self, length: usize) {
        let (literal, rest) = self.rest.split_at(length);
        self.out.extend(literal.chars().map(|sign| if sign == '\n' { '\n' } else { ' ' }));
        self.before = ' ';
        self.rest = rest;
    }
}

// Each of these gives the length in bytes of its literal when the text starts with one.

fn line_comment(text: &str, _: char) -> Option<usize> {
    text.starts_with("//").then(|| text.find('\n').unwrap_or(text.len()))
}

fn block_comment(text: &str, _: char) -> Option<usize> {
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    Some(text.len())
}

fn raw_string(text: &str, before: char) -> Option<usize> {
    let inner = ["r", "br", "cr"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let quoted = inner.trim_start_matches('#');
    if before.is_alphanumeric() || before == '_' || !quoted.starts_with('"') {
        return None;
    }
    let close = format!("\"{}", "#".repeat(inner.len() - quoted.len()));
    let open = text.len() - quoted.len() + 1;
    let end = text.get(open..)?.find(&close);
    Some(end.map_or(text.len(), |end| open + end + close.len()))
}

fn string(text: &str, _: char) -> Option<usize> {
    text.starts_with('"').then(|| closing(text, '"').unwrap_or(text.len()))
}

fn character(text: &str, _: char) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    let first = inner.chars().next()?;
    let after = inner.get(first.len_utf8()..)?;
    // Anything else that starts with a quote is a lifetime or a label.
    (first == '\\' || after.starts_with('\'')).then(|| closing(text, '\'')).flatten()
}

/// Where the literal ends whose first sign is its opening quote.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, sign) in text.char_indices().skip(1) {
        if !escaped && sign == quote {
            return Some(at + 1);
        }
        escaped = !escaped && sign == '\\';
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_code_is_blanked() {
        for not_code in [
            "// word",
            "/* a /* word */ word */",
            "\"a \\\" word\"",
            "r#\"a \" word\"#",
            "br\"word\"",
            "/// it's a word",
        ] {
            let text = format!("let a = 1;\n{not_code}\nlet b = 2;");
            let code = code_only(&text);
            assert!(!code.contains("word"), "{not_code}: {code}");
            assert!(code.ends_with("\nlet b = 2;"), "{not_code}: {code}");
        }
    }

    #[test]
    fn what_is_code_stays() {
        for code in ["fn f<'a>(x: &'a str) -> &'a str { word }", "for'x' word", "bar(word)"] {
            assert!(code_only(code).contains("word"), "{code}");
        }
        assert_eq!(code_only("['\\'', '\"', word]").trim_end(), "[    ,    , word]");
    }

    #[test]
    fn tests_do_not_count() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n  fn b() {}\n}\nfn c() {}\n";
        assert_eq!(lines_without_tests(code), 3);
        assert_eq!(lines_without_tests("fn a() {}\n#[cfg(test)]\nmod tests;\nfn c() {}\n"), 3);
        assert_eq!(lines_without_tests("a\nb\nc\n"), 3);
    }
}
