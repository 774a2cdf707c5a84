//! What packages carry, as those who read it understand it: systemd, libvirt, cargo-deb.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::vm::{process::which, store};
use toml::Table;

/// A file of the source tree.
fn source(path: &str) -> PathBuf {
    store::workspace().join(path)
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const UNITS: [(&str, &str); 2] = [
    (
        "host-shim/systemd/vhost-pci-shim@.service",
        "ExecStart=host-shim run ",
    ),
    (
        "appliance/systemd/vhost-pci-appliance@.service",
        "ExecStart=appliance serve ",
    ),
];

#[test]
fn systemd_understands_every_line_of_the_units() {
    let folder = tempfile::tempdir().unwrap();
    for (unit, start) in UNITS {
        let text = fs::read_to_string(source(unit)).unwrap();
        assert!(text.contains(start), "{unit}");
        let Some(analyze) = which("systemd-analyze") else {
            println!("{unit}: not verified, as there is no systemd-analyze");
            continue;
        };
        // The programs may not be installed here.
        let text = text.replace(start, "ExecStart=/bin/true ");
        let copy = folder.path().join(Path::new(unit).file_name().unwrap());
        fs::write(&copy, text).unwrap();

        // Nor is it about the units of this machine.
        let only = "--recursive-errors=no";
        let verified = run(&analyze, &["verify", only, copy.to_str().unwrap()]);

        assert!(verified.status.success(), "{}", said(&verified));
        let said = said(&verified);
        let name = copy.file_name().unwrap().to_str().unwrap();
        assert!(!said.contains(name), "{said}");
    }
}

#[test]
fn libvirt_understands_the_domains_in_its_document() {
    let document = fs::read_to_string(source("appliance/docs/libvirt.md")).unwrap();
    let domains: Vec<_> = document.split("```xml\n").skip(1).collect();
    assert_eq!(domains.len(), 2);
    let folder = tempfile::tempdir().unwrap();
    for (number, domain) in domains.into_iter().enumerate() {
        let (text, _) = domain.split_once("```").unwrap();
        let file = folder.path().join(format!("{number}.xml"));
        fs::write(&file, text).unwrap();
        let tools = which("virt-xml-validate").zip(which("xmllint"));
        let Some((validate, _)) = tools else {
            println!("domain {number}: not validated, for want of virt-xml-validate or xmllint");
            continue;
        };

        let validated = run(&validate, &[file.to_str().unwrap(), "domain"]);

        assert!(validated.status.success(), "{}", said(&validated));
    }
}

/// The `[package.metadata.deb]` of a crate.
fn debian(package: &str) -> Table {
    let manifest = fs::read_to_string(source(package).join("Cargo.toml")).unwrap();
    let manifest: Table = manifest.parse().unwrap();
    let found = manifest["package"]["metadata"]["deb"].as_table();
    found.unwrap().clone()
}

#[test]
fn a_debian_package_has_nothing_that_is_not_there() {
    for package in ["appliance", "host-shim"] {
        let folder = source(package);
        let debian = debian(package);
        let assets = debian["assets"].as_array().unwrap();
        let assets: Vec<Vec<&str>> = assets
            .iter()
            .map(|asset| asset.as_array().unwrap().iter())
            .map(|asset| asset.map(|word| word.as_str().unwrap()).collect())
            .collect();
        for asset in &assets {
            let from = asset[0];
            // What is built is not there now; `manual` in each crate's tests checks the latter.
            if from.starts_with("target/release/") || from.starts_with("../target/manual/") {
                continue;
            }
            let from = folder.join(from.strip_suffix("/*").unwrap_or(from));
            assert!(from.exists(), "{package}: {}", from.display());
        }
        let to: Vec<&str> = assets.iter().map(|asset| asset[1]).collect();
        for conf in debian["conf-files"].as_array().unwrap() {
            let conf = conf.as_str().unwrap().trim_start_matches('/');
            assert!(to.contains(&conf), "{package}: {conf}");
        }
        let scripts = debian["maintainer-scripts"].as_str().unwrap();
        let postinst = fs::read_to_string(folder.join(scripts).join("postinst")).unwrap();
        for made in ["sysusers", "tmpfiles"] {
            assert!(postinst.contains(&format!("systemd-{made}")), "{package}");
            let file = format!("usr/lib/{made}.d/vhost-pci-{package}.conf");
            assert!(to.contains(&&file[..]), "{package}: {file}");
        }
        let unit = |asset: &Vec<&str>| asset[0].starts_with("systemd/");
        assert!(assets.iter().any(unit), "{package}");
    }
}

#[test]
fn the_configuration_in_the_package_makes_sense_as_it_is_and_with_its_examples() {
    let text = fs::read_to_string(source("appliance/package/appliance.toml")).unwrap();
    let file = Path::new("appliance.toml");
    let plain = appliance::Config::parse(&text, file).unwrap();
    assert_eq!((plain.luns.len(), plain.hbas.len()), (0, 0));
    // Its remarks of code have a space, and a key or a table.
    let is_example = |line: &str| {
        let line = line.trim_start_matches("# ");
        line.starts_with("[[") || line.split(' ').nth(1) == Some("=")
    };
    let examples = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(example) if is_example(line) => example.to_owned(),
        _ => line.to_owned(),
    });
    let examples: Vec<_> = examples.collect();
    let config = appliance::Config::parse(&examples.join("\n"), file).unwrap();
    assert_eq!((config.luns.len(), config.hbas.len()), (1, 1));
    assert!(config.state.is_some());
}
