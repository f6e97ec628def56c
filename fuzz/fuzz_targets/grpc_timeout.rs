#![no_main]

libfuzzer_sys::fuzz_target!(|bytes| outrigger_fuzz::targets::grpc_timeout::run(bytes));
