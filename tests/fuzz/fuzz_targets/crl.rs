//! libFuzzer's way into [`boundkey_fuzz::crl`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::crl::run(data)));
