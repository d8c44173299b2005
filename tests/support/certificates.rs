//! An authority of a test's own, and what it certifies, with openssl.

use super::{Scratch, clean};

/// Has openssl make a key and a certificate of it.
pub const NEW: &str = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";

/// A directory with `ca.crt` and `ca.key`, and what they have signed.
pub struct Authority(Scratch);

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let authority = Authority(Scratch::new());
        let ours = "-keyout ca.key -out ca.crt -subj /CN=ours";
        authority.openssl(&format!("{NEW} {ours}"));
        authority
    }

    /// Where this file is.
    pub fn path(&self, file: &str) -> String {
        let file = self.0.path().join(file);
        file.to_str().expect("UTF-8").to_string()
    }

    /// Has openssl do something in the directory, which must go well.
    pub fn openssl(&self, arguments: &str) {
        let output = clean("openssl")
            .current_dir(self.0.path())
            .args(arguments.split(' '))
            .output()
            .expect("openssl runs");
        assert!(output.status.success(), "{arguments}: {output:?}");
    }

    /// Makes `name.key` and `name.crt` for 127.0.0.1, with this subject, signed by `by.key`.
    pub fn certify_by(&self, by: &str, name: &str, subject: &str, constraints: &str) {
        self.openssl(&format!(
            "{NEW} -keyout {name}.key -out {name}.crt \
             -subj {subject} -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:{constraints} -CA {by}.crt -CAkey {by}.key"
        ));
    }

    /// The same signed by the authority itself.
    pub fn certify(&self, name: &str, subject: &str) {
        self.certify_by("ca", name, subject, "FALSE");
    }
}
