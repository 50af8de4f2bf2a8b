#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| msgbus_store::fuzzing::recovery(data));
