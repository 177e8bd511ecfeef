//! Carrying out a plan in the kernel: additions first, removals last, back to where it was if a step fails.

pub mod learned;
pub mod plan;

use crate::filter;
use crate::netlink::Netlink;
use anyhow::{Context, Result};
use ipnet::IpNet;
use plan::confine::Surroundings;
use plan::{KernelPlan, Numbers, Route, Step};
use tombolo_proto::installed::{InstalledKernel, KernelRoute};

/// The kernel's side, with the plan that is in force there.
pub struct Kernel {
    netlink: Netlink,
    device: String,
    index: u32,
    current: KernelPlan,
    /// What earlier runs left is still there. It confines packets until this run's first configuration is in force.
    inherited: Option<Inherited>,
    /// Why the packet filter is not loaded.
    filter_problem: Option<String>,
}

/// What earlier runs may have left in the kernel, under the present numbers; and under those of the last run, where these were
/// others and no other agent has taken them since.
#[derive(Debug, Clone, Default)]
pub struct Inherited {
    /// The numbers of the last run.
    pub before: Option<Numbers>,
}

impl Kernel {
    /// Takes a device that is new: nothing is set on it yet.
    ///
    /// # Errors
    /// The kernel refuses to prepare it.
    pub async fn new(netlink: Netlink, device: String, index: u32, inherited: Inherited) -> Result<Self> {
        netlink.prepare_device(&device, index).await?;
        netlink.up(index).await?;
        Ok(Self {
            netlink,
            device,
            index,
            current: KernelPlan::default(),
            inherited: Some(inherited),
            filter_problem: None,
        })
    }

    /// What the agent must know of its host, now.
    ///
    /// # Errors
    /// The kernel refuses to list it.
    pub async fn surroundings(&self) -> Result<Surroundings> {
        self.netlink.surroundings().await
    }

    /// Sets everything that `plan` adds or changes. Returns the steps that remove what it no longer has, for
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// A step failed; what was done before it is undone.
    pub async fn advance(&mut self, plan: &KernelPlan) -> Result<Vec<Step>> {
        let before = self.current.clone();
        let (first, then) = before.steps(plan);
        self.load_filter(plan).await;
        for step in &first {
            if let Err(e) = self.take(step).await {
                self.load_filter(&before).await;
                let (back, away) = self.current.clone().steps(&before);
                for step in back.iter().chain(&away) {
                    if let Err(e) = self.take(step).await {
                        tracing::error!(error = %format!("{e:#}"), "step not undone");
                    }
                }
                return Err(e);
            }
        }
        Ok(then)
    }

    /// Removes what is no longer wanted, of this run and of earlier ones. A step that fails is tried again with the next
    /// configuration.
    pub async fn finish(&mut self, steps: Vec<Step>) {
        for step in &steps {
            if let Err(e) = self.take(step).await {
                tracing::warn!(error = %format!("{e:#}"), "left behind for now");
            }
        }
        if let Some(inherited) = self.inherited.take()
            && let Err(e) = self.remove_inherited(&inherited).await
        {
            tracing::warn!(error = %format!("{e:#}"), "rules and routes of an earlier run not removed yet; will retry");
            self.inherited = Some(inherited);
        }
    }

    async fn remove_inherited(&self, inherited: &Inherited) -> Result<()> {
        let (device, index) = (&self.device, self.index);
        let mut count = self.netlink.sweep_except(device, index, &self.current).await?;
        if let Some(before) = inherited.before {
            count += sweep(before).await?;
        }
        if count > 0 {
            tracing::info!(count, "removed rules and routes that an earlier run left");
        }
        Ok(())
    }

    /// Whether all that earlier runs left was removed.
    #[must_use]
    pub fn inherits_nothing(&self) -> bool {
        self.inherited.is_none()
    }

    /// Why packets with overlay addresses are not filtered, if they should be and are not.
    #[must_use]
    pub fn filter_problem(&self) -> Option<&str> {
        self.filter_problem.as_deref()
    }

    /// Loads the filter of `plan`, if it is not loaded. Without it the agent goes on: routes and rules confine all but
    /// translated packets.
    async fn load_filter(&mut self, plan: &KernelPlan) {
        let Some(wanted) = &plan.filter else { return };
        if self.current.filter.as_ref() == Some(wanted) {
            return;
        }
        let outcome = filter::load(&self.netlink.filter_script(wanted)).await;
        let problem = outcome.err().map(|e| e.to_string());
        if problem.is_none() {
            self.current.filter = Some(wanted.clone());
        }
        if problem != self.filter_problem
            && let Some(reason) = &problem
        {
            tracing::warn!(
                reason,
                "packets whose source becomes an overlay address by translation may leave this host in clear text"
            );
        }
        self.filter_problem = problem;
    }

    /// What was set and not removed since.
    #[must_use]
    pub fn installed(&self, numbers: Numbers) -> InstalledKernel {
        let kind = |(prefix, route): (&IpNet, &Route)| {
            let kind = match route {
                Route::Device(_) => KernelRoute::Device,
                Route::Throw => KernelRoute::Throw,
                Route::Line(_) => KernelRoute::Line,
                // Only what confines packets has it, which is not shown.
                Route::Unreachable => return None,
            };
            Some((*prefix, kind))
        };
        InstalledKernel {
            device: self.device.clone(),
            table: numbers.table,
            default_table: numbers.default_table,
            routes: self.current.routes.iter().filter_map(kind).collect(),
        }
    }

    async fn take(&mut self, step: &Step) -> Result<()> {
        self.netlink.execute(&self.device, self.index, step).await?;
        self.current.record(step);
        Ok(())
    }
}

/// Removes everything that an agent with these numbers has set and that does not end with its device. Returns how many rules
/// and routes there were.
///
/// # Errors
/// The kernel refuses.
pub async fn sweep(numbers: Numbers) -> Result<usize> {
    let count = Netlink::open(numbers, None)?.sweep().await?;
    filter::remove(&filter::table_name(numbers.table))
        .await
        .context("removing the packet filter")?;
    Ok(count)
}
