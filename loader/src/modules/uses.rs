//! Which module uses symbols of which other module.

use std::collections::BTreeSet;

use crate::vocabulary::module_id::ModuleId;

/// The pairs of a user and a provider, in both directions. A pair counts once, however many symbols are used.
#[derive(Default, Debug)]
pub(crate) struct ModuleUses {
    /// A user and a provider.
    providers: BTreeSet<(ModuleId, ModuleId)>,
    /// A provider and a user.
    users: BTreeSet<(ModuleId, ModuleId)>,
}

impl ModuleUses {
    /// Adds a pair, if the pair is not there yet.
    pub(crate) fn add(&mut self, user: ModuleId, provider: ModuleId) {
        self.providers.insert((user, provider));
        self.users.insert((provider, user));
    }

    /// Returns the providers of a module, in order of loading.
    pub(crate) fn providers(&self, user: ModuleId) -> impl Iterator<Item = ModuleId> {
        of(&self.providers, user)
    }

    /// Returns the users of a module, in order of loading.
    pub(crate) fn users(&self, provider: ModuleId) -> impl Iterator<Item = ModuleId> {
        of(&self.users, provider)
    }

    /// Removes all pairs of a module.
    pub(crate) fn remove(&mut self, id: ModuleId) {
        for provider in self.providers(id).collect::<Vec<_>>() {
            self.providers.remove(&(id, provider));
            self.users.remove(&(provider, id));
        }
        for user in self.users(id).collect::<Vec<_>>() {
            self.users.remove(&(id, user));
            self.providers.remove(&(user, id));
        }
    }
}

/// Returns the second modules of the pairs whose first module is this one, in order.
fn of(pairs: &BTreeSet<(ModuleId, ModuleId)>, first: ModuleId) -> impl Iterator<Item = ModuleId> {
    pairs.range((first, ModuleId::FIRST)..=(first, ModuleId::LAST)).map(|&(_, second)| second)
}

#[cfg(test)]
mod tests {
    use super::ModuleUses;
    use crate::vocabulary::module_id::ModuleId;

    #[test]
    fn a_removed_module_is_in_no_pair() {
        let [a, b, c] = [ModuleId::FIRST, ModuleId::FIRST.next(), ModuleId::LAST];
        let mut uses = ModuleUses::default();
        for (user, provider) in [(b, a), (c, a), (c, b), (c, b)] {
            uses.add(user, provider);
        }
        assert_eq!(uses.users(a).collect::<Vec<_>>(), [b, c]);
        assert_eq!(uses.providers(c).collect::<Vec<_>>(), [a, b]);
        uses.remove(b);
        assert_eq!(uses.users(a).collect::<Vec<_>>(), [c]);
        assert_eq!(uses.providers(c).collect::<Vec<_>>(), [a]);
        assert_eq!((uses.users(b).count(), uses.providers(b).count()), (0, 0));
    }
}
