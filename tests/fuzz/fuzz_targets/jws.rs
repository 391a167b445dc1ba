//! libFuzzer's way into [`boundkey_fuzz::jws`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::jws::run(data)));
