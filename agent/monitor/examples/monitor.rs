//! A monitor as a program of its own, for tests: `monitor [monitor] --run-dir DIR`.

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "monitor");
    monitor::run(monitor::MonitorConfig::from_arguments(arguments)?)
}
