//! Texts as Kubernetes takes them.

use runtime::hash::hash_bytes;

/// Longest name of a job: pods add their number, and what makes them unique.
const NAME: usize = 48;
/// A name that Kubernetes takes: small letters, digits and `-`; where that is not the same, with a hash of what was meant.
pub fn object_name(parts: &[&str]) -> String {
    let meant = parts.join("-");
    let small = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let mut name: String = meant.to_ascii_lowercase().chars().map(small).collect();
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name.insert_str(0, "r-");
    }
    if name == meant && name.len() <= NAME && !name.ends_with('-') {
        return name;
    }
    let hash = &hash_bytes(meant.as_bytes())[..8];
    name.truncate(NAME - hash.len() - 1);
    format!("{}-{hash}", name.trim_end_matches('-'))
}

/// A text in which Kubernetes replaces nothing.
pub fn literal(text: &str) -> String {
    text.replace("$(", "$$(")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_of_the_domain_name_system_and_differ_where_what_they_mean_does() {
        assert_eq!(object_name(&["tiny", "ppo"]), "tiny-ppo");
        let odd = [
            object_name(&["tiny", "to_256"]),
            object_name(&["tiny", "to-256_"]),
            object_name(&["Tiny", "to-256"]),
            object_name(&["7b", "sft"]),
            object_name(&["x", &"long".repeat(30)]),
            object_name(&["x", &"long".repeat(31)]),
        ];
        for name in &odd {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.len() <= NAME && name.chars().all(plain), "{name}");
            assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
            assert!(!name.ends_with('-'), "{name}");
            assert_eq!(odd.iter().filter(|other| *other == name).count(), 1);
        }
        assert!(odd[0].starts_with("tiny-to-256-"), "{}", odd[0]);
    }

    #[test]
    fn a_path_is_no_variable() {
        assert_eq!(literal("/a/$(HOME)/$b"), "/a/$$(HOME)/$b");
    }
}
