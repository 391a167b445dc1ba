//! libFuzzer's way into [`boundkey_fuzz::code`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::code::run(data)));
