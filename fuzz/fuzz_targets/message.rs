#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| msgbus_core::fuzzing::message(data));
