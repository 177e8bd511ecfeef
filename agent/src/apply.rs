//! Applies a [`KernelPlan`] to the kernel: additions first, then removals. If an addition fails, the additions that
//! were made before are undone.

pub mod learned;
pub mod plan;

use crate::filter;
use crate::netlink::{Netlink, Tun};
use anyhow::{Context, Result};
use ipnet::IpNet;
use plan::confine::Surroundings;
use plan::{Ingress, KernelIds, KernelPlan, Route, Step};
use tombolo_engine::tables::NicIndex;
use tombolo_proto::installed::{InstalledKernel, KernelRoute};

/// Sets the agent's part of the kernel's state, and keeps a record of what is set.
pub struct Kernel {
    netlink: Netlink,
    /// The TUN devices, in the order of NICs; never empty.
    devices: Vec<Tun>,
    /// The agent's record of the plan that is in force: each step that succeeded is entered here.
    current: KernelPlan,
    /// The kernel state that earlier runs of this agent left. None: that state has been removed. Until this run's first
    /// configuration is applied, that state keeps overlay packets on this host.
    inherited: Option<Inherited>,
    /// Why the packet filter is not loaded. None: the filter is loaded, or no plan needs one.
    filter_problem: Option<String>,
}

/// Identifies the kernel state that earlier runs of this agent may have left. State with this run's IDs is removed in
/// any case; this value names the IDs of the last run if they were others.
#[derive(Debug, Clone, Default)]
pub struct Inherited {
    /// The IDs of the last run, if they differ from this run's and no other agent has claimed them since.
    pub before: Option<KernelIds>,
}

impl Kernel {
    /// Prepares the first TUN device, and brings it up. The device must be new, and have no addresses and no routes
    /// yet. State of earlier runs stays until [`apply_removals`](Self::apply_removals).
    ///
    /// # Errors
    /// The device does not exist, CAP_NET_ADMIN is missing, or a sysctl or an attribute of the device cannot be set.
    /// The device may be prepared in part then.
    pub async fn new(netlink: Netlink, device: Tun, inherited: Inherited) -> Result<Self> {
        netlink.prepare_device(&device.name, device.index).await?;
        netlink.up(device.index).await?;
        Ok(Self {
            netlink,
            devices: vec![device],
            current: KernelPlan::default(),
            inherited: Some(inherited),
            filter_problem: None,
        })
    }

    /// Prepares the TUN devices of NICs that were added, and brings them up. `devices` has all devices, in the order of
    /// NICs; those that this value knows are left alone.
    ///
    /// # Errors
    /// As for [`new`](Self::new). The devices before the failed one are prepared.
    pub async fn add_devices(&mut self, devices: Vec<Tun>) -> Result<()> {
        for device in devices.into_iter().skip(self.devices.len()) {
            self.netlink.prepare_device(&device.name, device.index).await?;
            self.netlink.up(device.index).await?;
            self.devices.push(device);
        }
        Ok(())
    }

    /// Forgets the devices beyond the first `count`, which are about to be removed with their addresses and routes. The
    /// first device stays.
    pub fn forget_devices(&mut self, count: usize) {
        self.devices.truncate(count.max(1));
        let left = u8::try_from(self.devices.len()).unwrap_or(u8::MAX);
        self.current.devices = self.current.devices.min(left);
        // The kernel removes addresses and routes together with the device. If a rule for the device could not be
        // deleted, it stays until the agent's next start. It matches no packet, because its device does not exist.
        let is_left = |nic: NicIndex| nic.0 < left;
        let leads_there = |route: &Route| !matches!(route, Route::Device(nic, _) if !is_left(*nic));
        self.current.addresses.retain(|_, nic| is_left(*nic));
        self.current.routes.retain(|_, route| leads_there(route));
        self.current.table_routes.retain(|_, route| leads_there(route));
        self.current
            .rules
            .retain(|rule| !matches!(rule.ingress, Some(Ingress::Tun(nic)) if !is_left(nic)));
    }

    /// Reads the host's connected networks and bridges from the kernel, at each call.
    ///
    /// # Errors
    /// A netlink request fails.
    pub async fn surroundings(&self) -> Result<Surroundings> {
        self.netlink.surroundings().await
    }

    /// Applies all steps that add or change what `plan` demands. Returns the steps that remove what `plan` no longer
    /// demands, for [`apply_removals`](Self::apply_removals). A packet filter that cannot be loaded is not an error:
    /// [`filter_problem`](Self::filter_problem) returns the reason. If the future is dropped, the steps made so far
    /// stay; they are in the agent's record, so the next call continues from there.
    ///
    /// # Errors
    /// A step failed. The steps before it were rolled back, so that the previous plan is in force. If the rollback
    /// fails, that is only logged. A packet filter that was loaded for the first time stays loaded.
    pub async fn apply_additions(&mut self, plan: &KernelPlan) -> Result<Vec<Step>> {
        let before = self.current.clone();
        let (additions, removals) = before.steps(plan);
        // The filter is loaded before the steps, because no packet may leave from a new address before the filter
        // covers this address.
        self.load_filter(plan).await;
        for step in &additions {
            if let Err(e) = self.execute(step).await {
                self.load_filter(&before).await;
                let (restored, removed) = self.current.clone().steps(&before);
                for step in restored.iter().chain(&removed) {
                    if let Err(e) = self.execute(step).await {
                        tracing::error!(error = %format!("{e:#}"), "rollback of a kernel change failed");
                    }
                }
                // The next attempt must set up the devices of added NICs anew.
                self.current.devices = before.devices;
                return Err(e);
            }
        }
        Ok(removals)
    }

    /// Removes what an earlier configuration of this run has set (`steps`, from
    /// [`apply_additions`](Self::apply_additions)), then the state of earlier runs. A failed step is logged, and the
    /// other steps are executed nevertheless. The next configuration tries a failed step again, because the agent's
    /// record still has the object that the step should have removed. If the future is dropped, the rest is not
    /// removed; state of earlier runs then stays until the agent's next start.
    pub async fn apply_removals(&mut self, steps: Vec<Step>) {
        for step in &steps {
            if let Err(e) = self.execute(step).await {
                tracing::warn!(error = %format!("{e:#}"), "stale route, rule or address not removed yet; will retry");
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
        let mut count = self.netlink.sweep_except(&self.devices, &self.current).await?;
        if let Some(before) = inherited.before {
            count += sweep(before).await?;
        }
        if count > 0 {
            tracing::info!(count, "removed rules and routes that an earlier run left");
        }
        Ok(())
    }

    /// Whether this run has removed the state that earlier runs left on the host. It becomes true when
    /// [`apply_removals`](Self::apply_removals) first succeeds in this, also if there was nothing to remove. It is also
    /// true if the future of that call was dropped, although state may be left then.
    #[must_use]
    pub fn inherits_nothing(&self) -> bool {
        self.inherited.is_none()
    }

    /// Why the packet filter is not loaded although the plan has one: the error of `nft`. None: the filter is loaded,
    /// or no plan has had one yet.
    #[must_use]
    pub fn filter_problem(&self) -> Option<&str> {
        self.filter_problem.as_deref()
    }

    /// Loads the packet filter of `plan`, unless the same filter is loaded already. If that fails, the reason is
    /// recorded, and is logged if it differs from the last one. The agent continues without the filter: routes and
    /// rules still confine all packets except those whose source is translated.
    async fn load_filter(&mut self, plan: &KernelPlan) {
        let Some(filter) = &plan.filter else { return };
        if self.current.filter.as_ref() == Some(filter) {
            return;
        }
        let outcome = filter::load(&self.netlink.filter_script(filter)).await;
        let problem = outcome.err().map(|e| e.to_string());
        if problem.is_none() {
            self.current.filter = Some(filter.clone());
        }
        if problem != self.filter_problem
            && let Some(reason) = &problem
        {
            tracing::warn!(
                reason,
                "packet filter not loaded: packets whose source is translated to an overlay address may leave this host in clear text"
            );
        }
        self.filter_problem = problem;
    }

    /// The device, the tables and the routes that this agent has set, as the agent's own record lists them. The kernel
    /// is not read, so changes by other programs do not show. `ids` must be the IDs with which this value's [`Netlink`]
    /// was opened. Unreachable routes, which only confine packets, are left out.
    #[must_use]
    pub fn installed(&self, ids: KernelIds) -> InstalledKernel {
        let kind = |(prefix, route): (&IpNet, &Route)| {
            let kind = match route {
                Route::Device(..) => KernelRoute::Device,
                Route::Throw => KernelRoute::Throw,
                Route::Line(_) => KernelRoute::Line,
                // Unreachable routes only confine packets. They are left out, because readers of this list look for the
                // destinations of the overlay.
                Route::Unreachable => return None,
            };
            Some((*prefix, kind))
        };
        let further = |(prefix, route): (&IpNet, &Route)| match route {
            Route::Device(nic, _) if nic.0 > 0 => Some((*prefix, self.devices.get(nic.get())?.name.clone())),
            _ => None,
        };
        InstalledKernel {
            further_devices: self.current.routes.iter().filter_map(further).collect(),
            device: self.devices[0].name.clone(),
            table: ids.table,
            default_table: ids.default_table,
            routes: self.current.routes.iter().filter_map(kind).collect(),
        }
    }

    /// Executes a step, and enters it into the record if it succeeded.
    async fn execute(&mut self, step: &Step) -> Result<()> {
        self.netlink.execute(&self.devices, step).await?;
        self.current.record(step);
        Ok(())
    }
}

/// Removes the rules, routes and packet filter that an agent with these IDs has set, in the network namespace of the
/// calling thread. The kernel removes addresses together with the device. Returns the number of removed rules and
/// routes, which is 0 if there were none. The caller must have claimed the tables ([`Claim`](crate::claim::Claim)), so
/// that they belong to no running agent. CAP_NET_ADMIN is needed.
///
/// # Errors
/// A netlink request or `nft` fails. What was removed before stays removed.
pub async fn sweep(ids: KernelIds) -> Result<usize> {
    let count = Netlink::open(ids, None)?.sweep().await?;
    filter::remove(&filter::table_name(ids.table))
        .await
        .context("removing the packet filter")?;
    Ok(count)
}
