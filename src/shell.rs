//! Words for sh(1). Pure.
//!
//! Stands on the lowest floor beside `error`: overlays, control groups and containers all tell how the same is done
//! by hand.

/// One word for sh(1), in single quotes where it needs any. Any byte but NUL is fine.
pub fn quote(word: impl AsRef<[u8]>) -> Vec<u8> {
    let word = word.as_ref();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+=:,@%".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        return word.to_vec();
    }
    let mut quoted = vec![b'\''];
    for byte in word {
        if *byte == b'\'' { quoted.extend_from_slice(b"'\\''") } else { quoted.push(*byte) }
    }
    quoted.push(b'\'');
    quoted
}

/// Words with a space between them, as they are.
pub fn words<W: AsRef<[u8]>>(words: impl IntoIterator<Item = W>) -> Vec<u8> {
    let mut line = Vec::new();
    for word in words {
        if !line.is_empty() {
            line.push(b' ');
        }
        line.extend_from_slice(word.as_ref());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_stay_and_others_are_quoted() {
        assert_eq!(quote("/a-b_c.d"), b"/a-b_c.d");
        assert_eq!(quote(""), b"''");
        assert_eq!(quote("a b"), b"'a b'");
        assert_eq!(quote("it's"), b"'it'\\''s'");
        assert_eq!(quote(b"\xff\n$x"), b"'\xff\n$x'");
        assert_eq!(words(["a", "b"]), b"a b");
    }

    #[test]
    fn sh_reads_back_every_byte() {
        use std::os::unix::ffi::OsStringExt;
        let all: Vec<u8> = (1..=255).collect();
        let mut script = b"printf %s ".to_vec();
        script.extend(quote(&all));
        let script = std::ffi::OsString::from_vec(script);
        let output = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(output.stdout, all);
    }
}
