//! Capabilities of the user's terminal.

use std::env;

/// Returns whether the terminal, if there is one, has cursor control.
pub fn can_be_drawn_on() -> bool {
    env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns whether the locale's encoding is UTF-8.
pub fn is_utf8() -> bool {
    let mut locales = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(|name| env::var(name).ok());
    let locale = locales.find(|value| !value.is_empty()).unwrap_or_default();
    let locale = locale.to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}
