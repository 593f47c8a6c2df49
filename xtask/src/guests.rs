//! Builds guests: Rust crates into components under `target/guests`.
//!
//! Debian's compiler stands in where the active toolchain has no standard library for wasm; what
//! is missing is installed by `setup`, never here. The build has a target folder of its own, so
//! that its flags disturb no other build.
//!
//! Invariant: flags, profile and paths in the result are ours, not the caller's environment, so
//! that two checkouts build the same bytes with the same compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::text_guests;

/// The target that guests are built for: no WASI, so nothing to import.
pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// The guests of this repository: name of the component, and folder of the crate.
const GUESTS: [(&str, &str); 3] = [
    ("guest-kv", "guest-kv"),
    ("counter", "tests/guests/counter"),
    ("hostile", "tests/guests/hostile"),
];

/// What every guest depends on beside its own folder.
const SHARED_INPUTS: [&str; 5] =
    ["guest-sdk", "wit", "Cargo.toml", "Cargo.lock", "xtask/src/guests.rs"];

/// The release profile of guests: small, fast, and without paths or line tables.
const PROFILE: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_STRIP", "debuginfo"),
];

/// Builds every guest of this repository that is not up to date.
pub(crate) fn build() -> Result<()> {
    for (name, folder) in GUESTS {
        let folder = root().join(folder);
        if is_current(&component(name), &folder)? {
            continue;
        }
        build_one(name, &folder)?;
    }
    text_guests::build()
}

/// Builds the guest crate in `folder`, anywhere, and returns the component's path.
pub(crate) fn build_folder(folder: &Path) -> Result<PathBuf> {
    let folder =
        folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
    let name = folder.file_name().and_then(|name| name.to_str()).context("a folder has a name")?;
    build_one(name, &folder)
}

/// The root of this repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}

pub(crate) fn component(name: &str) -> PathBuf {
    root().join("target/guests").join(format!("{name}.wasm"))
}

/// True when the component is newer than all that it is made of.
pub(crate) fn is_current(component: &Path, source: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(component).and_then(|file| file.modified()) else {
        return Ok(false);
    };
    let shared = SHARED_INPUTS.iter().map(|input| root().join(input));
    for input in shared.chain([source.to_owned()]) {
        if newest(&input)? >= built {
            return Ok(false);
        }
    }
    Ok(true)
}

/// When `path`, or the newest file below it, was written.
fn newest(path: &Path) -> Result<SystemTime> {
    let file = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut time = file.modified()?;
    if file.is_dir() {
        for entry in fs::read_dir(path)? {
            time = time.max(newest(&entry?.path())?);
        }
    }
    Ok(time)
}

fn build_one(name: &str, folder: &Path) -> Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    let library = library(&folder.join("Cargo.toml"))?;
    eprintln!("building guest {name} with {}", toolchain.describe());
    let status = toolchain
        .cargo(&folder.join("Cargo.toml"))?
        .status()
        .context("cannot start cargo for the guest")?;
    ensure!(status.success(), "guest {name} does not build; the compiler said why above");

    let module = build_folder_path().join(TARGET).join("release").join(format!("{library}.wasm"));
    let module = fs::read(&module).with_context(|| format!("no module {}", module.display()))?;
    let component = component(name);
    write(&component, &componentize(&module).with_context(|| format!("guest {name}"))?)?;
    eprintln!("built {}", component.display());
    Ok(component)
}

fn build_folder_path() -> PathBuf {
    root().join("target/guests-build")
}

/// Name of the file that the crate's `cdylib` is built into, without its extension.
fn library(manifest: &Path) -> Result<String> {
    ensure!(manifest.is_file(), "{} is missing: a guest is a Rust crate", manifest.display());
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(manifest)
        .output()
        .context("cannot start cargo")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo cannot read {}: {error}", manifest.display());
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    find_library(&metadata, manifest).ok_or_else(|| {
        anyhow!(
            "{} makes no cdylib: add `[lib]` with `crate-type = [\"cdylib\"]`",
            manifest.display()
        )
    })
}

fn find_library(metadata: &serde_json::Value, manifest: &Path) -> Option<String> {
    let is_this = |package: &&serde_json::Value| {
        package["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest)
    };
    let is_cdylib = |target: &&serde_json::Value| {
        target["crate_types"].as_array().is_some_and(|types| types.iter().any(|t| t == "cdylib"))
    };
    let package = metadata["packages"].as_array()?.iter().find(is_this)?;
    let target = package["targets"].as_array()?.iter().find(is_cdylib)?;
    Some(target["name"].as_str()?.replace('-', "_"))
}

/// Wraps a core module, which carries its contract in a custom section, as a component.
fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    let section = b"component-type:";
    ensure!(
        module.windows(section.len()).any(|bytes| bytes == section),
        "the module does not say which world it is for: does the crate use `export!`?"
    );
    encode(module)
}

/// The same for a module that is known to have the contract.
pub(crate) fn encode(module: &[u8]) -> Result<Vec<u8>> {
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(module)
        .context("the module is for no world that is known here")?
        .encode()
        .context("the module cannot be made a component")
}

/// Writes a file so that no reader sees half of it.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().expect("a component lies in a folder");
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, bytes).with_context(|| format!("cannot write {}", folder.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

/// A compiler that can build guests.
pub(crate) enum Toolchain {
    /// The active toolchain has the target's standard library.
    Active,
    /// Debian's `rustc-web`, `cargo-web` and `rust-web-src`, with the linker given; the standard
    /// library is built from source.
    Debian {
        /// A linker for wasm.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// Finds the first that is there.
    pub(crate) fn find() -> Result<Self> {
        let sysroot = active_sysroot()?;
        if sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir() {
            return Ok(Self::Active);
        }
        match linker(&sysroot) {
            Some(linker) if debian_has_sources() => Ok(Self::Debian { linker }),
            _ => bail!(
                "nothing here can build guests for {TARGET}: run `cargo xtask setup`, or install \
                 the target with `rustup target add {TARGET}`"
            ),
        }
    }

    fn describe(&self) -> &'static str {
        match self {
            Self::Active => "the active toolchain",
            Self::Debian { .. } => {
                "Debian's rustc-web (its first build includes std: one to two minutes)"
            }
        }
    }

    /// `cargo build` for the crate of `manifest`, free of the caller's environment.
    fn cargo(&self, manifest: &Path) -> Result<Command> {
        let mut command = match self {
            Self::Active => Command::new("cargo"),
            Self::Debian { .. } => Command::new("/usr/bin/cargo"),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(is_inherited_setting) {
                command.env_remove(name);
            }
        }
        command
            .envs(PROFILE)
            .env("CARGO_ENCODED_RUSTFLAGS", remapped_paths()?)
            .args(["rustc", "--release", "--lib", "--target", TARGET, "--manifest-path"])
            .arg(manifest)
            // A crate may be an `rlib` too, for its tests. Asked for one alone, cargo builds std
            // and all dependencies once for all guests instead of once for each kind.
            .args(["--crate-type", "cdylib"])
            .arg("--target-dir")
            .arg(build_folder_path());
        if let Self::Debian { linker } = self {
            command
                .env_remove("RUSTUP_TOOLCHAIN")
                .env("RUSTC", "/usr/bin/rustc")
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
                .arg("-Zbuild-std=std,panic_abort");
        }
        Ok(command)
    }
}

/// True for what cargo hands to `xtask` or a user sets for other builds. The network settings and
/// folders of cargo stay.
fn is_inherited_setting(name: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_BUILD_", "CARGO_BIN_"];
    let names = ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_CRATE_NAME"];
    let rust = ["RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"];
    let loader = "LD_LIBRARY_PATH";
    prefixes.iter().any(|prefix| name.starts_with(prefix))
        || names.contains(&name)
        || rust.contains(&name)
        || name == loader
}

/// Flags that keep the folders of this machine out of panic messages.
fn remapped_paths() -> Result<String> {
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir().context("no home folder")?.join(".cargo"),
    };
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    Ok([remap(&cargo_home, "/cargo"), remap(root(), "/lockstep")].join("\x1f"))
}

/// The folder of the active toolchain.
fn active_sysroot() -> Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(root())
        .output()
        .context("rustc is missing: install Rust from https://rustup.rs")?;
    ensure!(output.status.success(), "rustc does not run: {}", text(&output.stderr));
    Ok(PathBuf::from(text(&output.stdout)))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// A linker for wasm: the active toolchain's own, else Debian's `wasm-ld`.
fn linker(sysroot: &Path) -> Option<PathBuf> {
    let hosts = fs::read_dir(sysroot.join("lib/rustlib")).ok()?.flatten();
    let rust_lld = hosts.map(|host| host.path().join("bin/rust-lld")).find(|path| path.is_file());
    rust_lld.or_else(|| Some(PathBuf::from("/usr/bin/wasm-ld")).filter(|path| path.is_file()))
}

/// True when Debian's compiler, cargo and the sources of std are installed.
fn debian_has_sources() -> bool {
    let tools = ["/usr/bin/cargo", "/usr/bin/rustc"].iter().all(|tool| Path::new(tool).is_file());
    let sysroot = Command::new("/usr/bin/rustc").args(["--print", "sysroot"]).output();
    tools
        && sysroot.is_ok_and(|output| {
            let sources = "lib/rustlib/src/rust/library/std/Cargo.toml";
            Path::new(&text(&output.stdout)).join(sources).is_file()
        })
}
