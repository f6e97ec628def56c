#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| outrigger_fuzz::targets::limits::run(bytes));
