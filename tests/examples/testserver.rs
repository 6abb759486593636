//! `testserver`: the little server that the lab's pods run. It owns nothing but its sockets.
//!
//! Standard library only, so that it can be linked statically and stand alone in an image.
//!
//! ```text
//! testserver [serve] [--port 8080]   HTTP on the port, TCP echo on port+1, UDP echo on port+2
//! testserver get URL                 one GET; prints the body, exits 1 unless 200
//! testserver udp HOST:PORT TEXT      one datagram; prints the answer
//! testserver exit CODE               exits at once with the code
//! testserver alloc MIB               allocates and touches memory, then sleeps
//! ```
//!
//! HTTP paths: `/` and `/hostname` (host name), `/headers` (the request's header lines), `/remote`
//! (the client's address as seen here), `/env?NAME`, `/delay?MILLIS`, `/exit?CODE`, `/alloc?MIB`,
//! `/healthz` (200 until `/fail` was called, then 500), `/fail`, `/recover`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]
#![allow(clippy::disallowed_methods, reason = "delays are what it is asked for")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Longest request head that is read, in bytes.
const HEAD_BYTES_MAX: u64 = 16 * 1024;

static HEALTHY: AtomicBool = AtomicBool::new(true);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["get", url] => get(url),
        ["udp", address, text] => udp(address, text),
        ["exit", code] => return ExitCode::from(code.parse::<u8>().unwrap_or(1)),
        ["alloc", mebibytes] => {
            allocate(mebibytes.parse().unwrap_or(0));
            Ok(())
        }
        ["serve", "--port", port] | ["--port", port] => serve(port.parse().unwrap_or(8080)),
        [] | ["serve"] => serve(8080),
        other => Err(io::Error::other(format!("unknown arguments: {other:?}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testserver: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(any(port))?;
    let echo = TcpListener::bind(any(port + 1))?;
    let datagrams = UdpSocket::bind(any(port + 2))?;
    println!("serving on {port} (HTTP), {} (TCP echo), {} (UDP echo)", port + 1, port + 2);
    thread::spawn(move || {
        for stream in echo.incoming().flatten() {
            thread::spawn(move || {
                let mut writer = stream.try_clone()?;
                io::copy(&mut &stream, &mut writer)
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0_u8; 2048];
        while let Ok((size, from)) = datagrams.recv_from(&mut buffer) {
            let answer =
                format!("{} {}", hostname(), String::from_utf8_lossy(&buffer[..size]).trim());
            if let Err(error) = datagrams.send_to(answer.as_bytes(), from) {
                eprintln!("testserver: answer to {from}: {error}");
            }
        }
    });
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            if let Err(error) = answer(&stream) {
                eprintln!("testserver: {error}");
            }
        });
    }
    Ok(())
}

/// All IPv6 and IPv4 addresses where the kernel has IPv6, else IPv4 alone.
fn any(port: u16) -> SocketAddr {
    let v6 = SocketAddr::from(([0_u16; 8], port));
    match UdpSocket::bind(SocketAddr::from(([0_u16; 8], 0))) {
        Ok(_) => v6,
        Err(_) => SocketAddr::from(([0_u8; 4], port)),
    }
}

fn answer(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.take(HEAD_BYTES_MAX));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut headers = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        headers.push_str(&line);
    }
    let target = request.split(' ').nth(1).unwrap_or("/");
    let (path, argument) = target.split_once('?').unwrap_or((target, ""));
    let (status, body) = respond(path, argument, &headers, stream)?;
    let mut writer = stream;
    write!(
        writer,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn respond(
    path: &str,
    argument: &str,
    headers: &str,
    stream: &TcpStream,
) -> io::Result<(&'static str, String)> {
    let number = || argument.parse::<u64>().unwrap_or(0);
    let body = match path {
        "/" | "/hostname" => format!("{}\n", hostname()),
        "/headers" => headers.to_owned(),
        "/remote" => format!("{}\n", stream.peer_addr()?.ip().to_canonical()),
        "/env" => format!("{}\n", std::env::var(argument).unwrap_or_default()),
        "/delay" => {
            thread::sleep(Duration::from_millis(number()));
            format!("{}\n", hostname())
        }
        "/exit" => std::process::exit(i32::try_from(number()).unwrap_or(1)),
        "/alloc" => {
            let mebibytes = usize::try_from(number()).unwrap_or(0);
            thread::spawn(move || allocate(mebibytes));
            "allocating\n".to_owned()
        }
        "/healthz" if !HEALTHY.load(Ordering::Relaxed) => {
            return Ok(("500 Internal Server Error", "failing\n".to_owned()));
        }
        "/healthz" => "ok\n".to_owned(),
        "/fail" => {
            HEALTHY.store(false, Ordering::Relaxed);
            "failing\n".to_owned()
        }
        "/recover" => {
            HEALTHY.store(true, Ordering::Relaxed);
            "ok\n".to_owned()
        }
        _ => return Ok(("404 Not Found", "not found\n".to_owned())),
    };
    Ok(("200 OK", body))
}

fn allocate(mebibytes: usize) {
    let mut held = vec![0_u8; mebibytes << 20];
    for page in held.iter_mut().step_by(4096) {
        *page = 1;
    }
    println!("holding {mebibytes} MiB ({})", held.len());
    loop {
        thread::park();
    }
}

fn get(url: &str) -> io::Result<()> {
    let rest = url.strip_prefix("http://").ok_or_else(|| io::Error::other("only http:// URLs"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut stream = connect(&address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    print!("{body}");
    if head.starts_with("HTTP/1.1 200") {
        Ok(())
    } else {
        Err(io::Error::other(head.lines().next().unwrap_or("no answer").to_owned()))
    }
}

fn connect(address: &str) -> io::Result<TcpStream> {
    use std::net::ToSocketAddrs;
    let mut last = io::Error::other("no address");
    for candidate in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&candidate, Duration::from_secs(5)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn udp(address: &str, text: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(any(0))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(text.as_bytes(), address)?;
    let mut buffer = [0_u8; 2048];
    let (size, _) = socket.recv_from(&mut buffer)?;
    println!("{}", String::from_utf8_lossy(&buffer[..size]));
    Ok(())
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}
