//! A company's own root, kept with openssl: what a cluster's CA may stand under.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{TempDir, success, tool};

/// What a CA certificate needs to say.
pub const AS_CA: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
                         subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";

pub struct Company {
    dir: TempDir,
}

fn openssl(dir: &Path, args: &[&str]) {
    success(Command::new(tool("openssl", "openssl")).current_dir(dir).args(args));
}

impl Company {
    /// A root with a key of this kind, as `-newkey` and the `-pkeyopt` behind it take it.
    pub fn with_key(kind: &[&str]) -> Self {
        let dir = TempDir::new("company");
        let request = ["req", "-x509", "-nodes", "-days", "3650", "-subj", "/O=Company/CN=Company Root", "-keyout", "root.key"];
        let more = ["-out", "root.pem", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        openssl(dir.path(), &[&request[..], &["-newkey"], kind, &more].concat());
        Self { dir }
    }

    pub fn new() -> Self {
        Self::with_key(&["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// Its pin.
    pub fn pin(&self) -> String {
        let command = "openssl x509 -in root.pem -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum | cut -c1-64";
        let digest = success(Command::new("sh").current_dir(self.dir.path()).args(["-c", command])).stdout;
        format!("sha256:{}", String::from_utf8(digest).expect("text").trim())
    }

    /// The certificate for a request, PEM; `from` and `to` are days from now.
    pub fn issue(&self, request: &Path, extensions: &str, days: &str) -> String {
        std::fs::write(self.dir.join("extensions"), extensions).expect("write");
        let request = request.display().to_string();
        let args = ["x509", "-req", "-in", &request, "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", days];
        openssl(self.dir.path(), &[&args[..], &["-extfile", "extensions", "-out", "issued.pem"]].concat());
        std::fs::read_to_string(self.dir.join("issued.pem")).expect("a certificate")
    }

    /// That certificate, and the root's.
    pub fn chain(&self, request: &Path) -> String {
        self.issue(request, AS_CA, "1825") + &std::fs::read_to_string(self.root()).expect("the root")
    }
}
