//! What the user's terminal is able to do.

use std::env;

/// Whether lines can be drawn over others, where there is a terminal at all.
pub fn can_be_drawn_on() -> bool {
    env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether the locale says that it knows more than ASCII.
pub fn is_utf8() -> bool {
    let mut locales = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(|name| env::var(name).ok());
    let locale = locales.find(|value| !value.is_empty()).unwrap_or_default();
    let locale = locale.to_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}
