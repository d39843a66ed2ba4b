//! What the environment says about the hub: the variables of Python's `huggingface_hub`, with the same
//! meanings. hf-hub 0.5 itself reads `HF_ENDPOINT` and `HF_HOME` alone.

use std::fs;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use super::error::HubError;

/// The bound of a silence while a file comes.
pub const DOWNLOAD_TIMEOUT: &str = "HF_HUB_DOWNLOAD_TIMEOUT";
/// The bound of a silence while something is asked.
pub const METADATA_TIMEOUT: &str = "HF_HUB_ETAG_TIMEOUT";

/// `huggingface_hub`'s bound of a silence, in seconds.
const USUAL_TIMEOUT: u64 = 10;

/// Where the hub is, who asks, and where the cache lies.
pub struct Settings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// The token that is sent to the endpoint, and to no other server.
    pub token: Option<String>,
    /// The cache's folder, absolute: a plan names what is in it.
    pub cache: PathBuf,
    /// Whether the cache alone is used.
    pub offline: bool,
    /// Longest silence while something is asked.
    pub metadata_timeout: Duration,
    /// Longest silence while a file comes.
    pub download_timeout: Duration,
}

impl Settings {
    /// Reads the variables; `variable` gives the value of one that is set.
    ///
    /// # Errors
    /// A value that a variable cannot have, or no home for the cache.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let folder = |name: &str| set(name).map(PathBuf::from);
        let home = folder("HF_HOME")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(folder("HOME")?.join(".cache/huggingface")));
        let cache = folder("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.ok_or(HubError::NoHome)?;
        Ok(Self {
            endpoint: endpoint(set("HF_ENDPOINT"))?,
            token: token(set("HF_TOKEN"), folder("HF_TOKEN_PATH"), home.as_deref())?,
            cache: path::absolute(&cache).map_err(HubError::disk("find", &cache))?,
            offline: set("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            metadata_timeout: seconds(METADATA_TIMEOUT, set(METADATA_TIMEOUT))?,
            download_timeout: seconds(DOWNLOAD_TIMEOUT, set(DOWNLOAD_TIMEOUT))?,
        })
    }
}

fn endpoint(value: Option<String>) -> Result<String, HubError> {
    let value = value.unwrap_or_else(|| "https://huggingface.co".to_owned());
    let host = value
        .strip_prefix("https://")
        .or(value.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic()) => {
            Ok(value.trim_end_matches('/').to_owned())
        }
        _ => Err(HubError::Setting {
            name: "HF_ENDPOINT",
            value,
            expected: "an address such as https://huggingface.co",
        }),
    }
}

/// `HF_TOKEN`, or what a log-in left in a file.
fn token(
    value: Option<String>,
    file: Option<PathBuf>,
    home: Option<&Path>,
) -> Result<Option<String>, HubError> {
    let (text, origin) = match (value, file.or_else(|| Some(home?.join("token")))) {
        (Some(value), _) => (value, "HF_TOKEN".to_owned()),
        (None, Some(file)) => match fs::read_to_string(&file) {
            Ok(text) => (text, file.display().to_string()),
            Err(_) => return Ok(None),
        },
        (None, None) => return Ok(None),
    };
    let token = text.trim();
    if !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(HubError::BadToken { origin });
    }
    Ok((!token.is_empty()).then(|| token.to_owned()))
}

fn seconds(name: &'static str, value: Option<String>) -> Result<Duration, HubError> {
    let Some(value) = value else {
        return Ok(Duration::from_secs(USUAL_TIMEOUT));
    };
    match value.trim().parse() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(HubError::Setting {
            name,
            value,
            expected: "a whole number of seconds above 0",
        }),
    }
}

/// As `huggingface_hub` reads flags.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_uppercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_mean_what_they_mean_elsewhere() {
        let usual = read(&[("HOME", "/home/me")]).expect("settings");
        assert_eq!(usual.endpoint, "https://huggingface.co");
        assert_eq!(usual.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert!(usual.token.is_none() && !usual.offline);
        assert_eq!(usual.download_timeout, Duration::from_secs(10));
        for (variables, cache) in [
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")][..],
                "/x/huggingface/hub",
            ),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HUB_CACHE", "/c")], "/c"),
        ] {
            assert_eq!(read(variables).expect("settings").cache, Path::new(cache));
        }
        let said = read(&[
            ("HF_HUB_CACHE", "/c"),
            ("HF_ENDPOINT", "http://127.0.0.1:8000/"),
            ("HF_TOKEN", " hf_abc\n"),
            ("HF_HUB_OFFLINE", "yes"),
            (DOWNLOAD_TIMEOUT, "3"),
            (METADATA_TIMEOUT, "4"),
        ])
        .expect("settings");
        assert_eq!(said.endpoint, "http://127.0.0.1:8000");
        assert_eq!(said.token.as_deref(), Some("hf_abc"));
        assert!(said.offline);
        assert_eq!(said.download_timeout, Duration::from_secs(3));
        assert_eq!(said.metadata_timeout, Duration::from_secs(4));
    }

    #[test]
    fn a_log_in_leaves_its_token_in_a_file_which_the_variable_overrides() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = dir.path().to_string_lossy().into_owned();
        fs::write(dir.path().join("token"), "hf_file\n").expect("a file");
        let token = |more: &[(&str, &str)]| {
            let variables = [&[("HF_HOME", home.as_str())], more].concat();
            read(&variables).expect("settings").token
        };
        assert_eq!(token(&[]).as_deref(), Some("hf_file"));
        assert_eq!(
            token(&[("HF_TOKEN", "hf_said")]).as_deref(),
            Some("hf_said")
        );
        let other = dir.path().join("other").to_string_lossy().into_owned();
        assert_eq!(token(&[("HF_TOKEN_PATH", &other)]), None);
        fs::write(&other, "hf_other").expect("a file");
        assert_eq!(
            token(&[("HF_TOKEN_PATH", &other)]).as_deref(),
            Some("hf_other")
        );
    }

    #[test]
    fn values_that_cannot_be_are_refused_and_a_token_is_not_repeated() {
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "https://"),
            ("HF_ENDPOINT", "ftp://x"),
            (DOWNLOAD_TIMEOUT, "0"),
            (DOWNLOAD_TIMEOUT, "soon"),
            (METADATA_TIMEOUT, "-1"),
        ] {
            let error = read(&[("HOME", "/h"), (name, value)])
                .err()
                .expect(value)
                .to_string();
            assert!(error.contains(name) && error.contains("hint: "), "{error}");
        }
        let secret = "hf_secret\r\nHost: elsewhere";
        let error = read(&[("HOME", "/h"), ("HF_TOKEN", secret)])
            .err()
            .expect("refused");
        assert!(!error.to_string().contains("hf_secret"), "{error}");
        assert!(matches!(read(&[]).err(), Some(HubError::NoHome)));
    }
}
