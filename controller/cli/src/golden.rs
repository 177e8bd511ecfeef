//! Tests with golden files: the names of options, and the configuration file. `tests/tests/golden.rs` records the
//! output of `-o json`.

use crate::args::Arguments;
use crate::config::File;
use clap::CommandFactory as _;
use tombolo_golden::{golden, options_of};

#[test]
fn options_of_the_program() {
    golden!().text("options.txt", &options_of(Arguments::command()));
}

#[test]
fn configuration_files() {
    let full = File {
        controller: Some("https://192.0.2.1:8443".into()),
        ca: Some("/ca.pem".into()),
        token_file: Some("/token".into()),
        token: Some("tmba.a.b".into()),
        resource_group: Some("lab".into()),
        subscription: Some("s".into()),
    };
    let text = toml::to_string(&full).unwrap();
    golden!().text("config.toml", &text);
    assert_eq!(toml::from_str::<File>(&text).unwrap(), full);
    assert_eq!(toml::from_str::<File>("").unwrap(), File::default());
}
