//! libFuzzer's way into [`boundkey_fuzz::certificate`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::certificate::run(data)));
