//! Generates the messages of the control stream if the feature `grpc` is enabled.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=tombolo/v1/control.proto");
    if std::env::var_os("CARGO_FEATURE_GRPC").is_some() {
        let files = protox::compile(["tombolo/v1/control.proto"], ["."])?;
        tonic_prost_build::configure().compile_fds(files)?;
    }
    Ok(())
}
