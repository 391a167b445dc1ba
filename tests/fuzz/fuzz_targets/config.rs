//! libFuzzer's way into [`boundkey_fuzz::config`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::config::run(data)));
