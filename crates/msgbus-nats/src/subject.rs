//! Names of topics as subjects, and back.

use msgbus_core::TopicName;

/// The subject of a topic. The parts of its name become tokens; what a token cannot have, or a reader may take for something
/// else, becomes `%` and two digits for each byte.
pub(crate) fn subject(prefix: &str, topic: &TopicName) -> String {
    let mut subject = prefix.to_owned();
    for part in topic.as_str().split('/') {
        subject.push('.');
        escape(part, &mut subject);
    }
    subject
}

fn escape(part: &str, out: &mut String) {
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// The topic of a subject. `None` if it is not the subject of a topic.
pub(crate) fn topic(prefix: &str, subject: &str) -> Option<TopicName> {
    let parts = subject.strip_prefix(prefix)?.strip_prefix('.')?;
    let unescape = |part: &str| -> Option<Vec<u8>> {
        let mut pieces = part.split('%');
        let mut bytes = pieces.next()?.as_bytes().to_vec();
        for piece in pieces {
            bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
            bytes.extend_from_slice(&piece.as_bytes()[2..]);
        }
        Some(bytes)
    };
    let parts: Option<Vec<Vec<u8>>> = parts.split('.').map(unescape).collect();
    let topic: TopicName = String::from_utf8(parts?.join(&b'/')).ok()?.parse().ok()?;
    (self::subject(prefix, &topic) == subject).then_some(topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_subject_of_its_own() {
        let names =
            ["a", "a/b", "a.b", "a b", "größe/日本", "*", ">", "%2E", "$SYS", "a/*/>", "~="];
        let mut subjects = Vec::new();
        for name in names.iter().filter_map(|name| name.parse::<TopicName>().ok()) {
            let text = subject("msgbus", &name);
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.%".contains(&b)));
            assert!(!text.contains("..") && !text.ends_with('.'), "{text}");
            assert_eq!(topic("msgbus", &text), Some(name));
            subjects.push(text);
        }
        assert!(subjects.len() > 5);
        for text in ["msgbus.$groups.g", "msgbus.a.%61", "msgbus.%2", "other.a", "msgbus"] {
            assert_eq!(topic("msgbus", text), None, "{text}");
        }
        subjects.sort();
        subjects.dedup_by(|a, b| a == b);
        assert!(subjects.contains(&"msgbus.a.b".to_owned()));
    }
}
