//! Commands as words: read from the text of a table, made up, and encoded.

/// Splits a line into words, as a shell does with single quotes, and reads escapes.
pub(crate) fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').expect("a quote is closed"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(unescaped(word));
        rest = after.trim_start();
    }
    words
}

fn unescaped(word: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some(first) = rest.chars().next() {
        let (byte, length) = match rest.get(..2) {
            Some(r"\0") => (0, 2),
            Some(r"\r") => (b'\r', 2),
            Some(r"\n") => (b'\n', 2),
            Some(r"\x") => (u8::from_str_radix(&rest[2..4], 16).expect("two digits"), 4),
            _ => (u8::try_from(first).expect("tables are ASCII"), 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    bytes
}

/// The words as a RESP2 array of bulk strings.
pub(crate) fn encode(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A command that may make sense: real names mostly, few keys, all options, odd numbers.
pub(crate) fn arbitrary(random: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    const NAMES: [&str; 12] =
        ["SET", "SET", "SET", "set", "sEt", "GET", "get", "DEL", "del", "EXISTS", "PING", "NOSUCH"];
    const OPTIONS: [&str; 14] = [
        "NX", "XX", "nx", "GET", "GET", "KEEPTTL", "keepttl", "EX", "PX", "EXAT", "PXAT", "px",
        "NX\0x", "what",
    ];
    const NUMBERS: [&str; 12] = [
        "1",
        "-1",
        "0",
        "9000000",
        "4000000000000",
        "4000000000",
        "9223372036854775807",
        "-9223372036854775808",
        "9223372036854775808",
        "1x",
        "",
        "007",
    ];
    let key = |random: &mut fastrand::Rng| {
        random.choice(["a", "b", "a key of 17 byte", "a key of 17 bytes", ""])
    };
    let mut words = vec![random.choice(NAMES).expect("there are names")];
    match words[0].to_lowercase().as_str() {
        "set" => {
            words.extend(
                [key(random), random.choice(["v", "", "longer", "w"])].into_iter().flatten(),
            );
            for _ in 0..random.usize(0..4) {
                let option = random.choice(OPTIONS).expect("there are options");
                words.push(option);
                if option.len() < 5 && option.to_lowercase().contains(['e', 'p']) && option != "GET"
                {
                    let number = random.choice(NUMBERS).expect("there are numbers");
                    // Times near now would depend on the clock, which the test has no say in.
                    let relative_one = number == "1" && !option.to_lowercase().ends_with("at");
                    words.push(if relative_one { "1000000" } else { number });
                }
            }
        }
        _ => (0..random.usize(0..4)).for_each(|_| words.extend(key(random))),
    }
    words.into_iter().map(|word| word.as_bytes().to_vec()).collect()
}
