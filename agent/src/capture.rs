//! Packet captures of an agent (D42), and the list of the tails of flow logs, which the controller asks for together. While a
//! capture runs, each lane puts copies of its packets into a ring, and a thread of the capture writes them to a file or to
//! the control stream. Without a capture there is no thread, and a lane has one comparison for each batch of packets.
//!
//! * `tap`: the captures in a lane. `flow`: filters. `ring`: from a lane to the thread. `outer`: the headers of datagrams.
//! * `writer`: the thread. `pcapng`: the format. `files`: the directory.

pub mod files;
pub mod flow;
pub mod outer;
pub mod pcapng;
pub mod ring;
pub mod tap;
pub mod writer;

use crate::config::CaptureSettings;
use crate::flow_log::tail::{self, Tap as LogTap};
use crate::live::{Shared, StreamData, StreamSender};
use files::CaptureFiles;
use pcapng::{Blocks, Interface};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tap::{Tap, TapSpec};
use tokio::sync::{Notify, mpsc};
use tombolo_proto::capture::{
    CaptureDelivery, CaptureError, CaptureLayer, CaptureReport, CaptureRequest, CaptureState, MAX_RUNNING,
    STREAM_WINDOW,
};
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::flow_tail::{self, TailRequest};
use uuid::Uuid;
use writer::{Output, Worker};

/// Room of the rings of one capture in bytes, shared by all lanes.
const RINGS: usize = 4 << 20;

/// Smallest and largest ring of one lane in bytes. The smallest has room for a few packets of the greatest length.
const RING: (usize, usize) = (256 << 10, 1 << 20);

/// Longest wait before the next look whether the controller has read enough of a live capture. Packets come so fast that a ring
/// is full within milliseconds.
const STREAM_WAIT: Duration = Duration::from_millis(2);

/// Number of messages of live captures and tails that wait for the control stream.
const STREAM_QUEUE: usize = 8;

/// Largest number of captures that the agent keeps in mind, those that have ended included.
const MAX_KNOWN: usize = 256;

/// What a capture needs of the running agent.
pub struct CaptureHost<'a> {
    /// The configuration in force. `None`: there is none yet.
    pub config: Option<&'a AgentConfig>,
    /// The names of the devices, in the order of NICs.
    pub device: &'a dyn Fn(usize) -> String,
    /// The number of lanes.
    pub lanes: usize,
    /// Passes one tap to each lane. Returns false if a lane has ended.
    pub add_taps: &'a dyn Fn(Vec<Tap>) -> bool,
    /// Passes a tap to the writer of the flow logs. Returns false if that is not possible.
    pub add_log_tap: &'a dyn Fn(LogTap) -> bool,
}

/// What the controller asks for.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// A packet capture.
    Capture(CaptureRequest),
    /// The tail of flow logs.
    Tail(TailRequest),
}

impl Wanted {
    const fn is_tail(&self) -> bool {
        matches!(self, Self::Tail(_))
    }

    fn is_stream(&self) -> bool {
        match self {
            Self::Capture(request) => request.delivery == CaptureDelivery::Stream,
            Self::Tail(_) => true,
        }
    }
}

/// The captures of an agent, and its tails of flow logs.
#[derive(Debug)]
pub struct Captures {
    files: Arc<CaptureFiles>,
    captures: Mutex<BTreeMap<Uuid, Capture>>,
    changed: Arc<Notify>,
    queue: mpsc::Sender<StreamData>,
    data: tokio::sync::Mutex<mpsc::Receiver<StreamData>>,
}

#[derive(Debug)]
struct Capture {
    shared: Arc<Shared>,
    is_stream: bool,
    is_tail: bool,
    /// Whether the controller has it in its list. If not, it is forgotten when its last report was taken.
    is_wanted: bool,
    thread: Option<JoinHandle<()>>,
}

/// Why a capture cannot start.
struct Refusal(CaptureError, String);

impl Captures {
    /// No captures. Files go into `directory`, unless the settings name another one.
    #[must_use]
    pub fn new(directory: PathBuf, settings: &CaptureSettings) -> Self {
        let (queue, data) = mpsc::channel(STREAM_QUEUE);
        let limit = u64::from(settings.max_megabytes) << 20;
        let directory = settings.directory.clone().unwrap_or(directory);
        Self {
            files: Arc::new(CaptureFiles::new(directory, limit)),
            captures: Mutex::default(),
            changed: Arc::default(),
            queue,
            data: tokio::sync::Mutex::new(data),
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Uuid, Capture>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the list of the captures that should be made. Starts those that are new, and lets those end that are missing.
    /// Captures that have ended do not start again. A request that is an error is reported as failed.
    pub fn set(&self, wanted: Vec<(Uuid, Result<Wanted, String>)>, host: &CaptureHost<'_>) {
        let mut all = self.all();
        for (id, capture) in all.iter_mut() {
            capture.is_wanted = wanted.iter().any(|(wanted, _)| wanted == id);
            match (capture.is_wanted, capture.is_stream) {
                (true, _) => {}
                (false, false) => capture.shared.stop(),
                // Nobody receives the bytes any more.
                (false, true) => capture.shared.abandon(),
            }
        }
        all.retain(|_, capture| capture.is_wanted || !capture.shared.is_over());
        for (id, request) in wanted.into_iter().take(MAX_KNOWN) {
            if all.contains_key(&id) {
                continue;
            }
            let is_tail = request.as_ref().is_ok_and(Wanted::is_tail);
            let is_stream = request.as_ref().is_ok_and(Wanted::is_stream);
            let of_kind = all.values().filter(|c| c.is_wanted && c.is_tail == is_tail);
            let running = of_kind.filter(|c| !c.shared.report().is_final()).count();
            let shared = Arc::<Shared>::default();
            let started = match request {
                Ok(Wanted::Capture(request)) if running < MAX_RUNNING => self.start(id, &request, &shared, host),
                Ok(Wanted::Tail(request)) if running < flow_tail::MAX_RUNNING => {
                    self.start_tail(id, request, &shared, host)
                }
                Ok(wanted) => Err(Refusal(CaptureError::CaptureFailed, too_many(&wanted))),
                Err(message) => Err(Refusal(CaptureError::CaptureFailed, message)),
            };
            let thread = match started {
                Ok(thread) => Some(thread),
                Err(Refusal(error, message)) => {
                    tracing::warn!(capture = %id, message, "capture not started");
                    shared.set(CaptureReport {
                        state: CaptureState::Error,
                        error: Some(error),
                        message: Some(message),
                        ..CaptureReport::default()
                    });
                    None
                }
            };
            let capture = Capture {
                shared,
                is_stream,
                is_tail,
                is_wanted: true,
                thread,
            };
            all.insert(id, capture);
        }
        self.changed.notify_one();
    }

    fn start(
        &self,
        id: Uuid,
        request: &CaptureRequest,
        shared: &Arc<Shared>,
        host: &CaptureHost<'_>,
    ) -> Result<JoinHandle<()>, Refusal> {
        let refused = |message: String| Refusal(CaptureError::CaptureFailed, message);
        let internal = |message: String| Refusal(CaptureError::InternalError, message);
        request.check().map_err(refused)?;
        let most = match request.bytes_per_packet {
            0 => usize::MAX,
            most => usize::try_from(most).unwrap_or(usize::MAX),
        };
        let (spec, interfaces) = spec(request, most, host).map_err(refused)?;
        let blocks = Blocks::new(&interfaces, most).map_err(|e| internal(format!("{e:#}")))?;
        let output = match request.delivery {
            CaptureDelivery::Stream => Output::Stream(self.sender(id, shared, STREAM_WINDOW, STREAM_WAIT)),
            CaptureDelivery::File => {
                let path = self.files.path(id, &request.name);
                let file = self.files.create(&path).map_err(|e| match e.kind() {
                    ErrorKind::AlreadyExists => Refusal(
                        CaptureError::AgentStopped,
                        format!(
                            "the agent has stopped during the capture; the file {} ends there",
                            path.display()
                        ),
                    ),
                    _ => Refusal(
                        CaptureError::LocalFileFailed,
                        format!("creating {}: {e}", path.display()),
                    ),
                })?;
                Output::File(self.files.clone(), path, file)
            }
        };
        let room = (RINGS / host.lanes.max(1)).clamp(RING.0, RING.1);
        let (spec, mut taps, mut rings) = (Arc::new(spec), Vec::new(), Vec::new());
        for _ in 0..host.lanes {
            let (writer, reader) = ring::ring(room, shared.lost.clone());
            taps.push(Tap::new(spec.clone(), writer));
            rings.push(reader);
        }
        let worker = Worker {
            id,
            shared: shared.clone(),
            rings,
            blocks,
            output,
            total: request.total_bytes,
            time: Duration::from_secs(request.seconds.into()),
            changed: self.changed.clone(),
        };
        if !(host.add_taps)(taps) {
            return Err(internal("the agent is stopping".to_owned()));
        }
        tracing::info!(capture = %id, layer = ?request.layer, delivery = ?request.delivery, "capture started");
        std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || worker.run())
            .map_err(|e| internal(format!("starting the thread of the capture: {e}")))
    }

    fn start_tail(
        &self,
        id: Uuid,
        request: TailRequest,
        shared: &Arc<Shared>,
        host: &CaptureHost<'_>,
    ) -> Result<JoinHandle<()>, Refusal> {
        let internal = |message: String| Refusal(CaptureError::InternalError, message);
        let check = request.check();
        check.map_err(|message| Refusal(CaptureError::CaptureFailed, message))?;
        let window = usize::try_from(request.window).unwrap_or(STREAM_WINDOW);
        let (tap, records) = tail::tap(request.logs, shared.lost.clone());
        let worker = tail::Worker {
            stream: self.sender(id, shared, window, tail::IDLE_WAIT),
            records,
            changed: self.changed.clone(),
        };
        if !(host.add_log_tap)(tap) {
            return Err(internal("the thread of the flow logs has not started".to_owned()));
        }
        tracing::info!(tail = %id, "tail of flow logs started");
        std::thread::Builder::new()
            .name("flow-log-tail".into())
            .spawn(move || worker.run())
            .map_err(|e| internal(format!("starting the thread of the tail: {e}")))
    }

    fn sender(&self, id: Uuid, shared: &Arc<Shared>, window: usize, max_wait: Duration) -> StreamSender {
        StreamSender {
            id,
            shared: shared.clone(),
            queue: self.queue.clone(),
            window,
            max_wait,
            sent: 0,
        }
    }

    /// Notes how many bytes of a live capture the controller has passed on.
    pub fn read(&self, id: Uuid, bytes: u64) {
        if let Some(capture) = self.all().get(&id) {
            capture.shared.read(bytes);
        }
    }

    /// Waits until [`take_reports`](Self::take_reports) may have something. Cancel safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The reports that have changed since the last call. Forgets captures that have ended and are not wanted any more.
    pub fn take_reports(&self) -> Vec<(Uuid, CaptureReport)> {
        let mut all = self.all();
        let taken = all.iter().filter_map(|(id, c)| Some((*id, c.shared.take()?))).collect();
        all.retain(|_, capture| capture.is_wanted || !capture.shared.is_over());
        taken
    }

    /// Lets the next [`take_reports`](Self::take_reports) return all reports, for a controller that has none of them.
    pub fn renew_reports(&self) {
        self.all().values().for_each(|capture| capture.shared.renew());
        self.changed.notify_one();
    }

    /// Waits for the next bytes of a live capture. Cancel safe.
    pub async fn next_data(&self) -> Option<StreamData> {
        self.data.lock().await.recv().await
    }

    /// Lets all live captures and tails end, because nobody can receive them any more.
    pub fn stop_streams(&self) {
        let all = self.all();
        all.values().filter(|c| c.is_stream).for_each(|c| c.shared.abandon());
    }

    /// Ends all captures, and waits until their files are complete. Blocks.
    pub fn finish(&self) {
        let mut all = self.all();
        all.values().for_each(|capture| capture.shared.abandon());
        for thread in all.values_mut().filter_map(|capture| capture.thread.take()) {
            // If the thread has panicked, nothing is left to write.
            let _ = thread.join();
        }
    }
}

fn too_many(wanted: &Wanted) -> String {
    let (most, what) = match wanted {
        Wanted::Capture(_) => (MAX_RUNNING, "captures"),
        Wanted::Tail(_) => (flow_tail::MAX_RUNNING, "tails of flow logs"),
    };
    format!("{most} {what} run at this agent already, and no more are possible; stop one first")
}

/// What is captured, and the interfaces of the file.
fn spec(request: &CaptureRequest, most: usize, host: &CaptureHost<'_>) -> Result<(TapSpec, Vec<Interface>), String> {
    let config = host.config.ok_or("this agent has no configuration yet")?;
    let interface = |name: String, description: &str| Interface {
        name,
        description: description.to_owned(),
    };
    let (nics, interfaces) = match (&config.role, request.layer) {
        (_, CaptureLayer::Datagrams) => {
            let links = interface("underlay".to_owned(), &format!("links of {}", config.agent));
            (Vec::new(), vec![links])
        }
        (Role::Vm { nics, .. }, CaptureLayer::Packets) => {
            let is_known = |id: &&_| nics.iter().any(|nic| nic.id == **id);
            if let Some(unknown) = request.nics.iter().find(|id| !is_known(id)) {
                return Err(format!("nics: {unknown} is no network interface of this agent"));
            }
            let is_wanted = |id: &_| request.nics.is_empty() || request.nics.contains(id);
            let wanted = nics.iter().enumerate().filter(|(_, nic)| is_wanted(&nic.id));
            let described = wanted.map(|(at, nic)| (nic.id.clone(), interface((host.device)(at), nic.id.as_str())));
            described.unzip()
        }
        (_, CaptureLayer::Packets) if !request.nics.is_empty() => {
            return Err("nics: this agent is no machine, and has no network interfaces".to_owned());
        }
        (_, CaptureLayer::Packets) => {
            let device = interface((host.device)(0), config.agent.as_str());
            (Vec::new(), vec![device])
        }
    };
    let spec = TapSpec {
        layer: request.layer,
        filters: request.filters.clone(),
        most,
        nics,
    };
    Ok((spec, interfaces))
}

#[cfg(test)]
mod tests;
