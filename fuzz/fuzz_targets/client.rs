#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| msgbus_client::fuzzing::client(data));
