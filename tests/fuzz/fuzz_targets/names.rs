//! libFuzzer's way into [`boundkey_fuzz::names`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::names::run(data)));
