//! A daemon that says what it was told to: `replay SOCKET DIRECTORY` answers as a dockerd does, with the files in DIRECTORY:
//! `GET /v1.41/containers/x/json?all=1` with `containers_x_json`. Nothing ever happens there.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (socket, directory) = (arguments.next().context("a socket")?, arguments.next().context("a directory")?);
    let listener = UnixListener::bind(&socket).with_context(|| format!("listen on `{}`", socket.display()))?;
    for stream in listener.incoming() {
        let (stream, directory) = (stream.context("accept a connection")?, directory.clone());
        // One that breaks off is the asker's affair.
        thread::spawn(move || answer(stream, &directory));
    }
    Ok(())
}

fn answer(mut stream: UnixStream, directory: &Path) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut header) = (String::new(), String::new());
    reader.read_line(&mut request)?;
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let target = request.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let resource = path.trim_start_matches('/').trim_start_matches("v1.41/");
    match resource {
        "_ping" => {
            let about = "Api-Version: 1.41\r\nServer: Docker/20.10.24 (linux)\r\nContent-Length: 2";
            write!(stream, "HTTP/1.1 200 OK\r\n{about}\r\nConnection: close\r\n\r\nOK")
        }
        "events" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            // Until the asker goes.
            reader.read_to_end(&mut vec![]).map(drop)
        }
        _ => {
            let told = fs::read_to_string(directory.join(resource.replace('/', "_")));
            let status = if told.is_ok() { "200 OK" } else { "404 Not Found" };
            let body = told.unwrap_or_else(|_| r#"{"message":"no such thing"}"#.into());
            let length = body.len();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        }
    }
}
