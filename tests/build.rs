//! The messages of the version before, as its sidecars read them (see skew/BASE).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=skew/recorded/discovery.proto");
    let descriptors = protox::compile(["discovery.proto"], ["skew/recorded"])?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
