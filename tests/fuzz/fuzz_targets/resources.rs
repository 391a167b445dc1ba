//! libFuzzer's way into [`boundkey_fuzz::resources`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::resources::run(data)));
