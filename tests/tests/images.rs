//! Stored images, as `tracker images` lists them, against the real containerd and dockerd of the distribution.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tracker_tests::containerd::{Containerd, IMAGE};
use tracker_tests::daemon::Daemon;
use tracker_tests::docker::Docker;
use tracker_tests::wait::eventually;
use tracker_tests::{require, requirement};

macro_rules! require_containerd {
    () => {
        require!(
            requirement::root(),
            requirement::tracker(),
            requirement::program("containerd"),
            requirement::program("ctr"),
            requirement::program("runc")
        );
    };
}

fn follow(containerd: &Containerd) -> Result<Daemon> {
    let socket = containerd.socket();
    Daemon::start(&format!("[containerd]\nsockets = [{socket:?}]\nsockets-if-present = []\nalive-interval-ms = 500"))
}

/// The image with this name in this namespace, once it is as it should be.
#[track_caller]
fn until(daemon: &Daemon, namespace: &str, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name} in {namespace}"), || {
        let images: Vec<Value> = serde_json::from_str(&daemon.ask(&["images", "-o", "json"]).ok()?.out).ok()?;
        images.into_iter().find(|image| {
            let names = image["names"].as_array().is_some_and(|names| names.contains(&json!(name)));
            image["namespace"] == namespace && names && is_so(image)
        })
    })
}

#[test]
fn an_image_is_told_with_all_that_its_blobs_say_and_who_uses_it() -> Result<()> {
    require_containerd!();
    let containerd = Containerd::start()?;
    let digest = containerd.import_image("default")?;
    let daemon = follow(&containerd)?;

    let image = until(&daemon, "default", IMAGE, |_| true);
    let manifest = containerd.ctr("default", &["content", "get", &digest])?;
    let manifest: Value = serde_json::from_str(&manifest).context("read the manifest")?;
    let layers = manifest["layers"].as_array().context("layers")?;
    let parts = layers.iter().chain([&manifest["config"]]);
    let size: u64 = parts.map(|part| part["size"].as_u64().unwrap()).sum();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    assert_eq!(image["source"], "containerd");
    assert_eq!(image["id"], manifest["config"]["digest"]);
    assert_eq!(image["size"], size);
    assert_eq!(image["platform"], format!("linux/{architecture}"));
    assert_eq!(image["digests"], json!([format!("docker.io/library/busybox@{digest}")]));
    assert_eq!(image["containers"], 0);
    // The test's images do not say when they were built.
    assert_eq!(image.get("created_at"), None);

    let id = format!("uses-{}", std::process::id());
    containerd.run("default", &id, &[], &["/bin/sleep", "1000"])?;
    until(&daemon, "default", IMAGE, |image| image["containers"] == 1);
    containerd.ctr("default", &["task", "kill", "-s", "KILL", &id])?;
    until(&daemon, "default", IMAGE, |image| image["containers"] == 0);

    let table = daemon.ask(&["images", "--sort", "name"])?.out;
    let line = table.lines().find(|line| line.starts_with("busybox:test ")).context("a line of the table")?;
    assert!(line.contains(&format!("linux/{architecture}")) && line.contains("containerd"), "{line}");
    Ok(())
}

#[test]
fn names_that_come_and_go_are_followed() -> Result<()> {
    require_containerd!();
    let mut containerd = Containerd::start()?;
    containerd.import_image("default")?;
    let daemon = follow(&containerd)?;
    until(&daemon, "default", IMAGE, |_| true);

    let other = "registry.example:5000/web";
    containerd.ctr("default", &["images", "tag", IMAGE, other])?;
    let image = until(&daemon, "default", other, |_| true);
    let names = [IMAGE, other];
    assert_eq!(image["names"], json!(names));
    let repositories: Vec<&str> = image["digests"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|digest| Some(digest.as_str()?.split_once('@')?.0))
        .collect();
    assert_eq!(repositories, ["docker.io/library/busybox", other]);

    containerd.ctr("default", &["images", "rm", IMAGE])?;
    until(&daemon, "default", other, |image| image["names"] == json!([other]));

    // What changed while nobody could tell is seen once the daemon is back; until then, the last list stands.
    containerd.kill();
    until(&daemon, "default", other, |_| true);
    containerd.restart()?;
    containerd.import_image("k8s.io")?;
    until(&daemon, "k8s.io", IMAGE, |_| true);
    until(&daemon, "default", other, |_| true);
    Ok(())
}

#[test]
fn an_image_of_which_a_part_is_missing_is_told_with_what_is_known() -> Result<()> {
    require_containerd!();
    let containerd = Containerd::start()?;
    let digest = containerd.import_image("default")?;
    let manifest: Value = serde_json::from_str(&containerd.ctr("default", &["content", "get", &digest])?)?;
    containerd.ctr("default", &["content", "rm", manifest["config"]["digest"].as_str().context("a config")?])?;
    let daemon = follow(&containerd)?;
    let image = until(&daemon, "default", IMAGE, |_| true);
    assert_eq!(image["id"], manifest["config"]["digest"]);
    assert_eq!(image.get("platform"), None);
    Ok(())
}

/// The image of Docker's with this name, once it is as it should be.
#[track_caller]
fn until_docker_s(daemon: &Daemon, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("{name} by docker"), || {
        let images: Vec<Value> = serde_json::from_str(&daemon.ask(&["images", "-o", "json"]).ok()?.out).ok()?;
        images.into_iter().find(|image| {
            let names = image["names"].as_array().is_some_and(|names| names.contains(&json!(name)));
            image["source"] == "docker" && names && is_so(image)
        })
    })
}

#[test]
fn an_image_of_docker_s_is_told_with_platform_size_digests_and_when_it_was_built() -> Result<()> {
    require_containerd!();
    require!(requirement::program("dockerd"), requirement::program("docker"));
    let docker = Docker::start()?;
    let socket = docker.socket();
    let daemon = Daemon::start(&format!(
        "[containerd]\nsockets = []\nsockets-if-present = []\n[find]\nenabled = false\n\
         [docker]\nsockets = [{socket:?}]\nsockets-if-present = []"
    ))?;
    let field = |name: &str, field: &str| docker.cli(&["image", "inspect", "--format", field, name]);
    let platform = field(docker.image(), "{{.Os}}/{{.Architecture}}")?;
    let is_whole = |image: &Value| image["platform"] == *platform;
    let pulled = until_docker_s(&daemon, docker.image(), is_whole);
    assert_eq!((&pulled["names"], &pulled["namespace"]), (&json!([docker.image()]), &Value::Null));
    assert_eq!(pulled["id"], field(docker.image(), "{{.Id}}")?);
    assert_eq!(pulled["size"], field(docker.image(), "{{.Size}}")?.parse::<u64>()?);
    let repository = docker.image().strip_suffix(":test").context("a tag")?;
    assert_eq!(pulled["digests"], json!([format!("{repository}@{}", docker.digest())]));
    assert_eq!((&pulled["containers"], pulled.get("created_at")), (&json!(0), None), "it does not say when");

    // One that is made here was never pulled, and says when it was built.
    let user = docker.run(&[], &["/bin/sleep", "1000"])?;
    until_docker_s(&daemon, docker.image(), |image| image["containers"] == 1);
    docker.cli(&["commit", &user, "made.example/here:1"])?;
    let made = until_docker_s(&daemon, "made.example/here:1", is_whole);
    assert_eq!((&made["digests"], &made["id"]), (&json!([]), &json!(field("made.example/here:1", "{{.Id}}")?)));
    assert_eq!(made["size"], field("made.example/here:1", "{{.Size}}")?.parse::<u64>()?);
    let built = field("made.example/here:1", "{{.Created}}")?;
    let [told, built] = [made["created_at"].as_str().context("a moment")?, &built].map(|moment| &moment[..19]);
    assert_eq!(told, built, "to the second");

    docker.cli(&["tag", "made.example/here:1", "made.example/there:2"])?;
    docker.cli(&["rmi", "made.example/here:1"])?;
    until_docker_s(&daemon, "made.example/there:2", |image| {
        is_whole(image) && image["names"] == json!(["made.example/there:2"])
    });
    Ok(())
}
