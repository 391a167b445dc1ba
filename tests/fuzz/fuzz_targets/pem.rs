//! libFuzzer's way into [`boundkey_fuzz::pem`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::pem::run(data)));
