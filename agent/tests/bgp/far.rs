//! A BIRD on another host. It is the BGP neighbour of the speaker under test.

use crate::common::Wire;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A running BIRD, with its directory and the parameters of its configuration.
pub(crate) struct Far {
    child: Child,
    dir: tempfile::TempDir,
    side: usize,
    asn: u32,
    neighbours: Vec<(String, u32)>,
    options: String,
}

impl Far {
    /// Starts BIRD on host `side` of the wire, and waits until its control socket answers. BIRD has one session with
    /// each address and ASN in `to`; the sessions are called `n0`, `n1`, and so on. It announces the static routes in
    /// `v4` and `v6`.
    pub(crate) fn start(wire: &Wire, side: usize, asn: u32, to: &[(&str, u32)], v4: &str, v6: &str) -> Self {
        Self::with(wire, side, asn, to, v4, v6, "")
    }

    /// Starts BIRD as [`start`](Self::start) does. `options` are added to each session.
    pub(crate) fn with(
        wire: &Wire,
        side: usize,
        asn: u32,
        to: &[(&str, u32)],
        v4: &str,
        v6: &str,
        options: &str,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let neighbours: Vec<(String, u32)> = to.iter().map(|(a, n)| ((*a).to_owned(), *n)).collect();
        let conf = configuration(side, asn, &neighbours, v4, v6, options);
        std::fs::write(dir.path().join("far.conf"), conf).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("ip")
            .args([
                "netns",
                "exec",
                &wire.ns[side],
                "bird",
                "-f",
                "-c",
                "far.conf",
                "-s",
                "far.ctl",
            ])
            .current_dir(dir.path())
            .stderr(log)
            .spawn()
            .unwrap();
        let far = Self {
            child,
            dir,
            side,
            asn,
            neighbours,
            options: options.to_owned(),
        };
        let begun = Instant::now();
        while UnixStream::connect(far.socket()).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "no bird: {}", far.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        far
    }

    /// Replaces the static routes that BIRD announces.
    pub(crate) fn replace(&mut self, v4: &str, v6: &str) {
        let conf = configuration(self.side, self.asn, &self.neighbours, v4, v6, &self.options);
        std::fs::write(self.dir.path().join("far.conf"), conf).unwrap();
        self.control("configure");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("far.ctl")
    }

    /// Sends a command to the control socket. Returns BIRD's reply, with the codes of its lines.
    pub(crate) fn control(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let n = stream.read(&mut buffer).unwrap();
            answer.extend(&buffer[..n]);
            let text = String::from_utf8_lossy(&answer).into_owned();
            let last = text.lines().skip(1).last().unwrap_or_default();
            let is_last = last.len() > 4 && last.as_bytes()[4] == b' ' && last[..4].parse::<u16>().is_ok();
            if n == 0 || text.ends_with('\n') && is_last {
                return text;
            }
        }
    }

    fn words(&self, session: &str) -> Vec<String> {
        let all = self.control("show protocols");
        let line = all
            .lines()
            .find(|l| l.split_ascii_whitespace().any(|w| w.ends_with(session)));
        line.unwrap().split_ascii_whitespace().map(str::to_owned).collect()
    }

    /// The name that BIRD gives to a session's state, such as `Established`.
    pub(crate) fn state(&self, session: &str) -> String {
        self.words(session).get(5).cloned().unwrap_or_default()
    }

    /// How often a session was established, according to BIRD's log.
    pub(crate) fn ups(&self, session: &str) -> usize {
        self.log().matches(&format!("{session}: State changed to up")).count()
    }

    /// The AS path of a prefix that the speaker under test has announced to this BIRD. None: it has not announced the
    /// prefix.
    pub(crate) fn path_of(&self, prefix: &str) -> Option<String> {
        let all = self.control(&format!("show route {prefix} all where source = RTS_BGP"));
        let path = all.lines().find_map(|l| l.trim().strip_prefix("BGP.as_path:"));
        path.map(|p| p.trim().to_owned())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) fn forget_log(&self) {
        let log = std::fs::OpenOptions::new()
            .write(true)
            .open(self.dir.path().join("log"));
        log.unwrap().set_len(0).unwrap();
    }
}

fn configuration(side: usize, asn: u32, neighbours: &[(String, u32)], v4: &str, v6: &str, options: &str) -> String {
    let host = side + 1;
    let mut out = format!(
        "log stderr all; debug protocols {{ states }}; router id 198.51.100.{host}; protocol device {{ }}\n\
         protocol static s4 {{ ipv4;\n{v4} }}\n\
         protocol static s6 {{ ipv6;\n{v6} }}\n"
    );
    for (i, (address, their_asn)) in neighbours.iter().enumerate() {
        let is_v6 = address.contains(':');
        let own = if is_v6 {
            format!("fd00:5::{host}")
        } else {
            format!("192.0.2.{host}")
        };
        let (hop4, hop6) = if is_v6 {
            ("extended next hop yes;".to_owned(), String::new())
        } else {
            (String::new(), format!("next hop address fd00:5::{host};"))
        };
        writeln!(
            out,
            "protocol bgp n{i} {{ local {own} as {asn}; neighbor {address} as {their_asn}; {options}\n\
             connect delay time 1; connect retry time 3; error wait time 1, 2; hold time 30; graceful restart yes;\n\
             ipv4 {{ {hop4} import all; export where source = RTS_STATIC; }};\n\
             ipv6 {{ {hop6} import all; export where source = RTS_STATIC; }}; }}"
        )
        .unwrap();
    }
    out
}

impl Drop for Far {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- log of the far bird ---\n{}\n{}",
                self.log(),
                self.control("show protocols all")
            );
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
