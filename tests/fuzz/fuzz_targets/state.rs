//! libFuzzer's way into [`boundkey_fuzz::state`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::state::run(data)));
