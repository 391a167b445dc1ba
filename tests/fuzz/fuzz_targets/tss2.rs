//! libFuzzer's way into [`boundkey_fuzz::tss2`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::tss2::run(data)));
