//! libFuzzer's way into [`boundkey_fuzz::uri`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::uri::run(data)));
