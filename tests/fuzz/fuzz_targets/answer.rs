//! libFuzzer's way into [`boundkey_fuzz::answer`].
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| drop(boundkey_fuzz::answer::run(data)));
