#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| outrigger_fuzz::targets::headers::run(bytes));
