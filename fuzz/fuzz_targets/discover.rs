#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fentry_fuzz::checks::discover::check(data));
