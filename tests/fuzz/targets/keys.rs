//! The keys of the fuzzed world. Fixed, so that seeds stay good; they guard nothing.

use std::sync::LazyLock;

use boundkey::platform::pem;
use boundkey_hal::file::PrivateKey;
use boundkey_hal::{Algorithm, Capabilities, Error, ErrorKind, KeyId, KeyStore, PublicKey, Signature};

/// A key and its public half.
pub struct Key {
    pub private: PrivateKey,
    pub public: PublicKey,
}

impl Key {
    pub fn sign(&self, message: &[u8]) -> Result<Signature, Error> {
        self.private.sign(message)
    }
}

fn key(pkcs8: &str) -> Key {
    use base64::Engine as _;
    let der = base64::engine::general_purpose::STANDARD.decode(pkcs8).expect("base64");
    let private = PrivateKey::from_pem(&pem::private_key(&der)).expect("a key");
    Key { public: private.public_key().expect("its public half"), private }
}

/// The device's key, bound on the server.
pub static BOUND: LazyLock<Key> = LazyLock::new(|| {
    key(
        "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgzexnrXi31mCG2BULeCF7RVUN6f6Rp5z096FehyZoH6ehRANCAARNOPJ7m169ZCe3Q2KyqKxcAbYnl8k3YTuvyDkvIM958vR3MA4weppsnx/t0RuButRX8bDHSxhDDHkNlhQVSeoY",
    )
});
/// The cluster's CA.
pub static CA: LazyLock<Key> = LazyLock::new(|| {
    key(
        "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgf81d6vZwTGlKx0Iq7ZuopjEnU29pYo3PAIITuiy4ooWhRANCAAQxdU+PEnORGbGfSi8OKI5nUxLg+aHrXQg0AUELiOpc069dDW8JU6TJTSfad0BWwI++I+MszIZsn9gD/4+8+HIO",
    )
});
/// Behind the device's identity certificate.
pub static IDENTITY: LazyLock<Key> = LazyLock::new(|| {
    key(
        "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgPWLxzfaaeFMCz5k11BMyaUPK7VntjXrxAZgXP5IWEtOhRANCAAQDp0UKZKSetnUAGvBjaIu1UnXRR6hCGIemtg1zSmrwky7CsXGITrMrigYYrVGbKrcIGoeVmXZnxYseECF3Ti9Z",
    )
});
/// What the server signs join states with.
pub static SERVER: LazyLock<Key> = LazyLock::new(|| {
    key(
        "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg07IEdS2FTiwMsp4oyK42wpEeM8gOcIP3V8rqCMh4/XmhRANCAARiFbYX8949lYXbgfWGofnZ1yUyGwsaStlv4tEF9OueMAcmcz6PJgzOiFZ0SH7Ijx4KZKO1iemwSaNazmfsPx7H",
    )
});
/// A key that the server does not know: a new one, or a stranger's.
pub static OTHER: LazyLock<Key> = LazyLock::new(|| {
    key(
        "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgGqWmnlewFsTKkuUrkWdDu13oPX095ljXGSwIOzAbG9ShRANCAARzwJBJGwMf0aTczGsCVGfZ2YQjOHWxbXNAG2OLaAcl/XE9XqnRdzHGo4hiDIivAZfLK4SegGhjWafGYLsCku11",
    )
});

/// The key of this name.
pub fn named(name: &str) -> Option<&'static Key> {
    match name {
        "bound" => Some(&BOUND),
        "ca" => Some(&CA),
        "identity" => Some(&IDENTITY),
        "other" => Some(&OTHER),
        "server" => Some(&SERVER),
        _ => None,
    }
}

/// A key store with these keys: the first is found under any name that it is asked for, where the name is none of the others'.
pub struct Store(pub Vec<(&'static str, &'static LazyLock<Key>)>);

impl Store {
    fn open(&self, id: &KeyId) -> Result<&'static Key, Error> {
        let found = self.0.iter().find(|(name, _)| id.as_str() == *name).or(self.0.first());
        found.map(|(_, key)| &***key).ok_or_else(|| Error::new(ErrorKind::NotFound, "no keys"))
    }
}

impl KeyStore for Store {
    fn capabilities(&self) -> Result<Capabilities, Error> {
        let algorithms = heapless::Vec::from_iter([Algorithm::EcdsaP256]);
        Ok(Capabilities { algorithms, hardware: false, place: heapless::String::new() })
    }
    fn generate(&self, id: &KeyId, _: Algorithm) -> Result<PublicKey, Error> {
        self.public_key(id)
    }
    fn public_key(&self, id: &KeyId) -> Result<PublicKey, Error> {
        Ok(self.open(id)?.public.clone())
    }
    fn sign(&self, id: &KeyId, message: &[u8]) -> Result<Signature, Error> {
        self.open(id)?.sign(message)
    }
    fn list(&self, _: &mut dyn FnMut(&KeyId)) -> Result<(), Error> {
        Ok(())
    }
    fn delete(&self, _: &KeyId) -> Result<(), Error> {
        Ok(())
    }
}
