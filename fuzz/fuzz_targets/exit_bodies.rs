#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fentry_fuzz::checks::exit_bodies::check(data));
