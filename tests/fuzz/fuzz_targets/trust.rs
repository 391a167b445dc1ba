//! libFuzzer's way into [`boundkey_fuzz::trust`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::trust::run(data)));
