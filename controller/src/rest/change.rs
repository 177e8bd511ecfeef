//! Changes of the desired state, which the stored assertions may refuse (D41).

use super::state::Rest;
use crate::asserted::{check, may_alter_reach};
use crate::reach_cache::Known;
use crate::writer::{Committed, WriteError};
use tombolo_topology::change::Change;
use tombolo_topology::learned_routes::LearnedReports;

impl Rest {
    /// Makes a change, as [`Writer::change`](crate::writer::Writer::change) does, unless a stored assertion would no longer hold after it. An assertion
    /// that does not hold before the change either, for instance because a site announces other routes now, refuses
    /// nothing.
    ///
    /// # Errors
    /// As for [`Writer::change`](crate::writer::Writer::change). A change that breaks an assertion is a rejection with the status 403, as a denial of
    /// Azure Policy is.
    pub(crate) async fn change(&self, change: Change) -> Result<Committed, WriteError> {
        let asserted = self.asserted.keep().await;
        if asserted.is_empty() || !may_alter_reach(&change) {
            return self.app.writer.change(change).await;
        }
        // Until the change is made, no other change that may alter reachability can be.
        let mut cache = self.reach.0.clone().lock_owned().await;
        let published = self.app.writer.current();
        let reports = LearnedReports::of(&self.app.agents.statuses()).of_routes_only();
        let (assertions, of) = (asserted.clone(), reports.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let known = Known::of(published, reports, cache.take());
            let checked = check(&known, &change, &assertions);
            *cache = Some(known);
            (checked, change, cache)
        });
        let (checked, change, mut cache) = checked.await.map_err(|e| WriteError::Store(e.to_string()))?;
        let after = checked?;
        let committed = self.app.writer.change(change).await?;
        // The stored state differs from the checked one in GUIDs, and in what does not alter reachability.
        if let Some(reach) = after {
            *cache = Some(Known {
                revision: committed.published.revision,
                topology: committed.published.topology.clone(),
                reports: of,
                reach,
            });
        }
        Ok(committed)
    }
}
