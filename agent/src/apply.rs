//! Carrying out a plan in the kernel: additions first, removals last, back to where it was if a step fails.

pub mod learned;
pub mod plan;

use crate::netlink::Netlink;
use anyhow::{Context, Result};
use plan::{Connected, KernelPlan, Numbers, Route, Step};
use tombolo_proto::installed::{InstalledKernel, KernelRoute};

/// The kernel's side, with the plan that is in force there.
pub struct Kernel {
    netlink: Netlink,
    device: String,
    index: u32,
    current: KernelPlan,
}

impl Kernel {
    /// Takes a device that is new: nothing is set on it yet.
    ///
    /// # Errors
    /// The kernel refuses to prepare it.
    pub async fn new(netlink: Netlink, device: String, index: u32) -> Result<Self> {
        netlink.prepare_device(&device, index).await?;
        netlink.up(index).await?;
        Ok(Self {
            netlink,
            device,
            index,
            current: KernelPlan::default(),
        })
    }

    /// The networks that the host is connected to.
    ///
    /// # Errors
    /// The kernel refuses to list them.
    pub async fn connected(&self) -> Result<Vec<Connected>> {
        self.netlink.connected().await
    }

    /// Sets everything that `plan` adds or changes. Returns the steps that remove what it no longer has, for
    /// [`finish`](Self::finish).
    ///
    /// # Errors
    /// A step failed; what was done before it is undone.
    pub async fn advance(&mut self, plan: &KernelPlan) -> Result<Vec<Step>> {
        let before = self.current.clone();
        let (first, then) = before.steps(plan);
        for step in &first {
            if let Err(e) = self.take(step).await {
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

    /// Removes what is no longer wanted. A step that fails is tried again with the next configuration.
    pub async fn finish(&mut self, steps: Vec<Step>) {
        for step in &steps {
            if let Err(e) = self.take(step).await {
                tracing::warn!(error = %format!("{e:#}"), "left behind for now");
            }
        }
    }

    /// Removes everything of the agent's, known or not.
    pub async fn withdraw(&mut self) {
        if let Err(e) = self.netlink.sweep().await.context("removing rules and routes") {
            tracing::warn!(error = %format!("{e:#}"), "left behind: 'tombolo-agent clean' removes it");
        }
        self.current = KernelPlan::default();
    }

    /// What was set and not removed since.
    #[must_use]
    pub fn installed(&self, numbers: Numbers) -> InstalledKernel {
        let kind = |route: &Route| match route {
            Route::Device(_) => KernelRoute::Device,
            Route::Throw => KernelRoute::Throw,
            Route::Line(_) => KernelRoute::Line,
        };
        InstalledKernel {
            device: self.device.clone(),
            table: numbers.table,
            default_table: numbers.default_table,
            routes: self.current.routes.iter().map(|(p, r)| (*p, kind(r))).collect(),
        }
    }

    async fn take(&mut self, step: &Step) -> Result<()> {
        self.netlink.execute(&self.device, self.index, step).await?;
        self.current.record(step);
        Ok(())
    }
}
