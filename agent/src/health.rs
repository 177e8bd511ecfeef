//! A stand-in.
#![allow(missing_docs)]
use std::net::IpAddr;
use std::time::{Duration, Instant};
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub address: IpAddr,
    pub probe: ProbeSpec,
}
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeSpec {
    pub protocol: ProbeProtocol,
    pub port: u16,
    pub path: String,
    pub interval: Duration,
    pub threshold: u16,
}
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProbeProtocol {
    Tcp,
    Http,
    Https,
}
pub struct Prober(Vec<Target>);
impl Prober {
    pub fn new(_seed: u64) -> Self {
        Self(Vec::new())
    }
    pub fn set_targets(&mut self, targets: &[Target], _now: Instant) {
        self.0 = targets.to_vec();
    }
    pub fn receive(&mut self, _packet: &[u8], _now: Instant) {}
    pub fn poll(&mut self, _now: Instant, _send: &mut dyn FnMut(&[u8])) {}
    pub fn next_due(&self) -> Option<Instant> {
        None
    }
    pub fn health(&self) -> impl Iterator<Item = (&Target, bool)> {
        self.0.iter().map(|t| (t, true))
    }
    pub fn take_changed(&mut self) -> bool {
        false
    }
}
