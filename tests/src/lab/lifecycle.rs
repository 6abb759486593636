//! Bringing a lab up and down, and its processes to life again after a kill or a power cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::signal;
use super::{
    Addresses, ETCDS_MAX, Host, Lab, MASTER, MASTERS_MAX, REGISTRY, Role, image, registry,
};
use crate::shell::{run, wait_for};

/// Port of the lab's registry.
const REGISTRY_PORT: u16 = 5000;
/// The cluster secret's file in a master's folder.
const SECRET: &str = "cluster-secret";
/// How long the master or the registry may take until it answers.
pub(super) const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long all nodes may take until they are Ready.
const READY_DEADLINE: Duration = Duration::from_secs(120);

/// What `lab up` may be told.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// How many nodes.
    pub nodes: u8,
    /// How many masters; more than one need etcd members.
    pub masters: u8,
    /// How many etcd members; none: the master's own log is the datastore.
    pub etcds: u8,
    /// The lab's folder.
    pub dir: PathBuf,
    /// Where `agent`, `controlplane`, `lab` and the static `testserver` are.
    pub bin_dir: PathBuf,
    /// A registries file for the nodes instead of the one that points at the lab's own registry.
    pub registries: Option<PathBuf>,
    /// Further arguments of `controlplane run`.
    pub master_args: Vec<String>,
}

/// Two labs that come up at once take different numbers: a number is taken once its switch is there.
fn hold_numbers() -> Result<fs::File> {
    let path = std::env::temp_dir().join("flotilla-labs.lock");
    let file = fs::File::create(&path).with_context(|| path.display().to_string())?;
    file.lock().with_context(|| path.display().to_string())?;
    Ok(file)
}

impl Lab {
    /// Brings a lab up and waits until every node is Ready; on failure all of it is taken down again,
    /// logs excepted.
    pub fn up(options: &UpOptions) -> Result<Lab> {
        if options.dir.join("lab.json").exists() {
            bail!(
                "a lab is in {} already; `scripts/lab down --dir` it first",
                options.dir.display()
            );
        }
        let numbers = hold_numbers()?;
        let lab = Lab::prepare(options)?;
        let switched = lab.make_switch();
        drop(numbers);
        let outcome = switched.and_then(|()| lab.start_all(options));
        if let Err(error) = outcome {
            let logs = lab.log_tails();
            if let Err(second) = lab.take_down() {
                eprintln!("while taking the lab down again: {second:?}");
            }
            return Err(error.context(logs));
        }
        Ok(lab)
    }

    fn prepare(options: &UpOptions) -> Result<Lab> {
        if options.masters == 0 || (options.masters > 1 && options.etcds == 0) {
            bail!("several masters need etcd members to share: --etcd 1, or 3");
        }
        if options.masters > MASTERS_MAX || options.etcds > ETCDS_MAX {
            bail!("a lab has at most {MASTERS_MAX} masters and {ETCDS_MAX} etcd members");
        }
        fs::create_dir_all(&options.dir)?;
        let dir = options.dir.canonicalize()?;
        let bin_dir = options
            .bin_dir
            .canonicalize()
            .with_context(|| format!("no binaries in {}", options.bin_dir.display()))?;
        let addresses = Addresses::first_free(Path::new("/run/netns"))?;
        let registries = match &options.registries {
            Some(file) => fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?,
            None => {
                let endpoint = format!("http://{}:{REGISTRY_PORT}", addresses.ip(2));
                format!(
                    "[mirror.\"docker.io\"]\nendpoints = [\"{endpoint}\"]\n\n\
                     [mirror.\"registry.k8s.io\"]\nendpoints = [\"{endpoint}\"]\n"
                )
            }
        };
        let nodes = (1..=options.nodes).map(|number| format!("node{number}")).collect();
        let further = (2..=options.masters).map(|number| format!("{MASTER}{number}"));
        let masters = std::iter::once(MASTER.to_owned()).chain(further).collect();
        let etcds = (1..=options.etcds).map(|number| format!("etcd{number}")).collect();
        let lab = Lab { dir, bin_dir, id: addresses.id, masters, etcds, nodes, registries };
        lab.save()?;
        Ok(lab)
    }

    fn start_all(&self, options: &UpOptions) -> Result<()> {
        self.start_registry()?;
        for etcd in &self.etcds {
            self.host(etcd)?.power_on()?;
            self.start_etcd(etcd)?;
        }
        for etcd in &self.etcds {
            self.etcd_answers(etcd)?;
        }
        let mut arguments = options.master_args.clone();
        if !self.etcds.is_empty() {
            let endpoints = self.etcd_endpoints()?.join(",");
            arguments.extend(["--datastore-endpoints".to_owned(), endpoints]);
        }
        for master in &self.masters {
            let host = self.host(master)?;
            host.power_on()?;
            fs::write(host.dir.join("args.json"), serde_json::to_vec(&arguments)?)?;
            self.share_secret(&host)?;
            self.start_master(master)?;
            self.write_kubeconfig(&host)?;
        }
        fs::copy(self.kubeconfig_of(MASTER), self.kubeconfig())?;
        for node in &self.nodes {
            self.host(node)?.power_on()?;
            self.join(node, &[])?;
            self.start_agent(node)?;
        }
        let start = Instant::now();
        for node in &self.nodes {
            wait_for(&format!("{node} to be Ready"), READY_DEADLINE, || self.node_ready(node))?;
        }
        println!("all {} nodes Ready after {:.1?}", self.nodes.len(), start.elapsed());
        Ok(())
    }

    fn make_switch(&self) -> Result<()> {
        let names = self.addresses();
        let (switch, machine) = (names.switch(), names.machine_link());
        run(&["ip", "netns", "add", &switch])?;
        run(&["ip", "-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        run(&["ip", "-n", &switch, "link", "set", "br0", "up"])?;
        let port = names.port(1);
        run(&[
            "ip", "link", "add", &machine, "type", "veth", "peer", "name", &port, "netns", &switch,
        ])?;
        run(&["ip", "-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        run(&["ip", "addr", "add", &format!("{}/24", names.ip(1)), "dev", &machine])?;
        run(&["ip", "link", "set", &machine, "up"])?;
        Ok(())
    }

    fn start_registry(&self) -> Result<()> {
        let host = self.host(REGISTRY)?;
        host.power_on()?;
        let address = format!("{}:{REGISTRY_PORT}", host.ip);
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: \"{address}\", headers: {{}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n",
            host.dir.join("images").display()
        );
        let file = host.dir.join("config.yml");
        fs::write(&file, config)?;
        let mut command = host.command("docker-registry")?;
        command.arg("serve").arg(&file);
        host.spawn(command, "registry.log")?;
        wait_for("the registry", START_DEADLINE, || registry::answers(&address))?;
        let busybox = Path::new("/bin/busybox");
        registry::push(&address, "library/busybox", "1.35", &image::busybox(busybox)?)?;
        let testserver = image::testserver(&self.binary("testserver"), busybox)?;
        registry::push(&address, "library/testserver", "latest", &testserver)
    }

    /// Gives a further master the cluster secret that the first one made.
    fn share_secret(&self, host: &Host) -> Result<()> {
        if host.name == MASTER {
            return Ok(());
        }
        let (made, own) = (self.dir.join(MASTER).join(SECRET), host.dir.join(SECRET));
        fs::copy(&made, &own).with_context(|| format!("cannot copy {}", made.display()))?;
        Ok(())
    }

    fn start_master(&self, name: &str) -> Result<()> {
        let host = self.host(name)?;
        let extra: Vec<String> =
            serde_json::from_slice(&fs::read(host.dir.join("args.json"))?).unwrap_or_default();
        let mut command = host.command(self.binary("controlplane"))?;
        command.arg("run").arg("--data-dir").arg(&host.dir);
        command.args(["--advertise-address", &host.ip.to_string()]).args(extra);
        host.spawn(command, "controlplane.log")?;
        wait_for("the master to answer", START_DEADLINE, || {
            let url = format!("https://{}:6443/readyz", host.ip);
            run(&["curl", "-sS", "-k", "--fail", "--max-time", "5", &url]).map(drop)
        })
    }

    fn write_kubeconfig(&self, master: &Host) -> Result<()> {
        let server = format!("https://{}:6443", master.ip);
        let output = Command::new(self.binary("controlplane"))
            .arg("kubeconfig")
            .arg("--data-dir")
            .arg(&master.dir)
            .args(["--server", &server])
            .output()?;
        if !output.status.success() {
            bail!("controlplane kubeconfig: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(fs::write(self.kubeconfig_of(&master.name), output.stdout)?)
    }

    /// A new join token of the lab's master, made with further `arguments`.
    pub fn token(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.host(MASTER)?.command(self.binary("controlplane"))?;
        command.args(["token", "create", "--data-dir"]).arg(self.dir.join(MASTER));
        let token = crate::shell::capture(command.args(arguments))?.success()?;
        Ok(token.lines().last().unwrap_or_default().trim().to_owned())
    }

    /// Runs `agent join --no-service` on a node that has power; `arguments` are added to it.
    pub fn join(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let host = self.host(node)?;
        let etc = host.dir.join("etc/flotilla");
        fs::create_dir_all(&etc)?;
        fs::write(etc.join("registries.toml"), &self.registries)?;
        let token = self.token(&[])?;
        let mut command = host.command(self.binary("agent"))?;
        command.arg("join").arg(self.server()).args(["--token", &token, "--no-service"]);
        command.args(["--node-name", node, "--node-ip", &host.ip.to_string()]);
        command.args(["--cgroup-parent", &self.addresses().cgroup(node)]).args(arguments);
        crate::shell::capture(&mut command)?
            .success()
            .with_context(|| format!("{node} could not join"))
    }

    /// Starts the agent of a node that has joined.
    pub fn start_agent(&self, node: &str) -> Result<()> {
        let host = self.host(node)?;
        let mut command = host.command(self.binary("agent"))?;
        command.arg("run");
        host.spawn(command, "agent.log")
    }

    /// Starts what does not run on the host: power, then its process.
    pub fn start(&self, name: &str) -> Result<()> {
        let host = self.host(name)?;
        if host.holder().is_err() {
            host.power_on()?;
        }
        let role = self.role(name);
        if !host.pids(&[role.process()])?.is_empty() {
            bail!("{name} is running");
        }
        match role {
            Role::Master => self.start_master(name),
            Role::Node => self.start_agent(name),
            Role::Etcd => self.start_etcd(name),
            Role::Registry => bail!("the registry only starts with the lab"),
        }
    }

    /// Kills one process: a master, an etcd member, `NODE` (its agent) or `NODE/monitor`.
    pub fn kill(&self, target: &str, signal_number: i32) -> Result<Vec<u32>> {
        let (name, process) = match target.split_once('/') {
            Some((node, "monitor")) => (node, "agent monitor"),
            Some((_, other)) => bail!("no process {other:?}; NODE, NODE/monitor, master or etcd1"),
            None => (target, self.role(target).process()),
        };
        self.host(name)?.kill(&[process], signal_number)
    }

    /// Whether the API says that the node is Ready; the error says what it says instead.
    pub fn node_ready(&self, node: &str) -> Result<()> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let status = self.kubectl(&["get", "node", node, "-o", path])?;
        if status == "True" {
            return Ok(());
        }
        bail!("Ready is {status:?}")
    }

    /// Runs the real kubectl against this lab and gives its standard output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_output(arguments)?
            .success()
            .with_context(|| format!("`kubectl {}` failed", arguments.join(" ")))
    }

    /// Runs the real kubectl against this lab, whatever comes of it.
    pub fn kubectl_output(&self, arguments: &[&str]) -> Result<crate::shell::Output> {
        crate::shell::capture(self.kubectl_command().args(arguments))
    }

    /// A command that is kubectl with this lab's kubeconfig.
    #[must_use]
    pub fn kubectl_command(&self) -> Command {
        self.kubectl_at(&self.kubeconfig())
    }

    /// A command that is kubectl with a kubeconfig of this lab's.
    #[must_use]
    pub fn kubectl_at(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", kubeconfig);
        command.env("HOME", &self.dir); // its discovery cache belongs to the lab
        command
    }

    /// Takes everything of the lab away, its folder too.
    pub fn down(&self) -> Result<()> {
        self.take_down()?;
        fs::remove_dir_all(&self.dir)
            .with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    fn take_down(&self) -> Result<()> {
        for name in self.hosts() {
            self.host(name)?.power_off()?;
        }
        let switch = self.addresses().switch();
        if Path::new("/run/netns").join(&switch).exists() {
            run(&["ip", "netns", "del", &switch])?;
        }
        let machine = self.addresses().machine_link();
        // With the switch's namespace its end of the link goes, and this one by itself a moment later.
        let link = Path::new("/sys/class/net").join(&machine);
        let deleted = crate::shell::capture(Command::new("ip").args(["link", "del", &machine]))?;
        if deleted.code != 0 && link.exists() {
            bail!("cannot delete the link {machine}: {}", deleted.stderr);
        }
        match fs::remove_file(self.dir.join("lab.json")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The last lines of every log, for the message of a failure.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for name in self.hosts() {
            for log in [self.role(name).log(), "holder.log"] {
                let Ok(content) = fs::read_to_string(self.dir.join(name).join(log)) else {
                    continue;
                };
                let lines: Vec<&str> = content.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n  ");
                if !tail.is_empty() {
                    text.push_str(&format!("--- {name}/{log}\n  {tail}\n"));
                }
            }
        }
        text
    }

    /// Kills every process of a host's role and waits until it is gone.
    pub fn kill_and_wait(&self, target: &str, signal_number: i32) -> Result<()> {
        for pid in self.kill(target, signal_number)? {
            wait_for("a killed process to go", START_DEADLINE, || gone(pid))?;
        }
        Ok(())
    }
}

fn gone(pid: u32) -> Result<()> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A thread that waits for the disk keeps the process's sockets and files although its leader is a zombie already.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if stat.is_empty() || (stat.contains(") Z ") && threads <= 1) {
        return Ok(());
    }
    signal(pid, 0).ok();
    bail!("{pid} lives")
}

/// The hosts whose logs, state and processes a person may ask for.
pub fn describe(host: &Host) -> String {
    match host.holder() {
        Ok(pid) => format!("{:<12} {:<16} holder {pid}", host.name, host.ip),
        Err(_) => format!("{:<12} {:<16} no power", host.name, host.ip),
    }
}
