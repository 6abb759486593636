//! Pushing images to an OCI registry: the few calls of the distribution API that the lab needs.

use anyhow::{Context, Result, bail};
use ureq::Agent;

use super::image::Image;

/// Pushes `image` as `repository:tag` to the plain-HTTP registry at `host:port`.
pub fn push(registry: &str, repository: &str, tag: &str, image: &Image) -> Result<()> {
    let agent: Agent = Agent::config_builder().http_status_as_error(false).build().into();
    let base = format!("http://{registry}/v2/{repository}");
    for blob in image.layers.iter().chain([&image.config]) {
        push_blob(&agent, &base, &blob.digest, &blob.bytes)
            .with_context(|| format!("cannot push {} of {repository}:{tag}", blob.digest))?;
    }
    let answer = agent
        .put(format!("{base}/manifests/{tag}"))
        .header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        .send(image.manifest.as_slice())?;
    if !answer.status().is_success() {
        bail!("registry {registry} refused {repository}:{tag}: {}", answer.status());
    }
    Ok(())
}

fn push_blob(agent: &Agent, base: &str, digest: &str, bytes: &[u8]) -> Result<()> {
    if agent.head(format!("{base}/blobs/{digest}")).call()?.status().is_success() {
        return Ok(());
    }
    let opened = agent.post(format!("{base}/blobs/uploads/")).send_empty()?;
    let location = opened
        .headers()
        .get("location")
        .with_context(|| format!("no upload location, {}", opened.status()))?
        .to_str()?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let done = agent
        .put(format!("{location}{separator}digest={digest}"))
        .header("Content-Type", "application/octet-stream")
        .send(bytes)?;
    if !done.status().is_success() {
        bail!("upload refused: {}", done.status());
    }
    Ok(())
}

/// Whether the registry answers.
pub fn answers(registry: &str) -> Result<()> {
    ureq::get(format!("http://{registry}/v2/"))
        .call()
        .map(drop)
        .with_context(|| format!("registry {registry} does not answer"))
}
