#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| outrigger_fuzz::targets::token::run(bytes));
