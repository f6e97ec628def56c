//! Compiles all protobuf with `protox`, so that nobody needs a `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (folder, files) in [
        (
            "../api/proto",
            &[
                "outrigger/identity/v1/identity.proto",
                "outrigger/access/v1/access.proto",
                "outrigger/limits/v1/limits.proto",
                "outrigger/discovery/v1/discovery.proto",
            ][..],
        ),
        ("../proxy/proto", &["envoy/service/auth/v3/external_auth.proto"]),
        (
            "../examples/shop-app/proto",
            &["shop/v1/payments.proto", "grpc/health/v1/health.proto"],
        ),
    ] {
        println!("cargo:rerun-if-changed={folder}");
        // What has a key is shown without it: `api` writes how.
        let config = tonic_prost_build::configure().skip_debug(["outrigger.discovery.v1.SessionPersistence"]);
        config.compile_fds(protox::compile(files, [folder])?)?;
    }
    Ok(())
}
