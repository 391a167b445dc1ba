//! libFuzzer's way into [`boundkey_fuzz::join`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::join::run(data)));
