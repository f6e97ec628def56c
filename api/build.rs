//! Compiles the protobuf with `protox`, so that nobody needs a `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "outrigger/identity/v1/identity.proto",
        "outrigger/discovery/v1/discovery.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
