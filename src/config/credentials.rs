//! Credentials that systemd passes (systemd.exec(5), `LoadCredential=`).

use std::fs;
use std::path::PathBuf;

/// Returns the file of the credential of this name, if systemd passes it. A blank one counts as
/// absent: the unit's `SetCredential=` creates it.
pub fn from_systemd(name: &str) -> Option<PathBuf> {
    let file = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    let is_blank = fs::read(&file).is_ok_and(|text| text.trim_ascii().is_empty());
    (file.exists() && !is_blank).then_some(file)
}
