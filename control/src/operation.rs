//! Performs a request on the host.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use modload::file::{ModuleFile, SIZE_LIMIT};
use modload::module::is_same_name;
use modload::{Image, Module, ModuleInfo, State, UnloadError};
use rustix::fs::{OFlags, fcntl_getfl};
use serde_json::{Value, json};

use crate::error::{NotAFile, RequestRefusal, occupants};
use crate::patch;
use crate::protocol::{
    Called, ModuleEntry, ModuleListing, ModuleName, ParamEntry, Request, ResultType, Sizes, StripeEntry,
};
use crate::server::ServerState;
use crate::session::{Answers, greeting};
use crate::trace::traceable;

/// A request that is being processed.
pub(crate) struct Operation<'a> {
    pub(crate) shared: &'a ServerState,
    pub(crate) answers: &'a Answers,
    pub(crate) id: u64,
    /// Whether the client has sent more bytes after this request.
    pub(crate) more_came: bool,
}

impl Operation<'_> {
    /// Performs the request and returns the answer.
    pub(crate) fn answer(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Value, RequestRefusal> {
        let wanted = if let Request::Load { files, .. } = &request { files.len() } else { 0 };
        if descriptors.len() != wanted {
            return Err(RequestRefusal::Descriptors { given: descriptors.len(), wanted });
        }
        if self.shared.is_stopping() {
            return Err(RequestRefusal::Stopping);
        }
        match request {
            Request::Ping {} => Ok(json!(greeting())),
            Request::List {} => Ok(json!(self.list())),
            Request::Info { name } => Ok(json!(self.info(&name)?)),
            Request::Load { files, name, params, want } => {
                let image = self.image(&files, descriptors, name)?;
                let image = params.into_iter().fold(image, Image::param);
                let image = want.into_iter().fold(image, Image::want);
                Ok(json!(self.load(&files, &image)?))
            }
            Request::Unload { name, wait, force } => {
                self.unload(
                    &name,
                    Duration::from_secs(wait),
                    if force { DespiteReferences::Yes } else { DespiteReferences::No },
                )?;
                Ok(json!(ModuleName { module: name }))
            }
            Request::Params { name } => Ok(json!(params(&self.look(&name)?.0))),
            Request::SetParam { name, param, value } => Ok(json!(self.set_param(&name, &param, value.as_deref())?)),
            Request::Call { symbol, module, result, arguments } => {
                Ok(json!(self.call(&symbol, module.as_deref(), result, &arguments)?))
            }
            Request::Trace(asked) => Ok(json!(self.trace(&asked)?)),
            Request::Patches {} => Ok(json!(patch::list(&self.shared.host)?)),
            Request::PatchStatus { name } => Ok(json!(patch::status(&self.shared.host, &name)?)),
            Request::Patch { name, action } => {
                let _listening = self.listen();
                Ok(json!(patch::act(&self.shared.host, &name, action)?))
            }
            Request::Traceable { patterns } => Ok(json!(traceable(&self.shared.host, &patterns)?)),
        }
    }

    fn list(&self) -> ModuleListing {
        let host = &self.shared.host;
        // Frees quarantined modules that no thread is in any more, so that the list does not show them.
        host.sweep();
        let stripe = |stripe: modload::text::StripeUsage| StripeEntry {
            stripe: stripe.class.to_string(),
            used: stripe.used,
            touched: stripe.touched,
        };
        ModuleListing {
            modules: host.look().iter().map(|(module, state)| entry(module, *state)).collect(),
            taint: host.taint(),
            memory: host.memory().map(stripe).into(),
            quarantined: host.quarantined().iter().map(|module| module.name().to_owned()).collect(),
        }
    }

    /// Returns a module without taking a reference, which would keep other clients from unloading it.
    fn look(&self, name: &str) -> Result<(Arc<ModuleInfo>, State), RequestRefusal> {
        let found = self.shared.host.look().into_iter().find(|(module, _)| is_same_name(module.name(), name));
        found.ok_or_else(|| RequestRefusal::NoModule(name.into()))
    }

    fn info(&self, name: &str) -> Result<ModuleEntry, RequestRefusal> {
        let (module, state) = self.look(name)?;
        Ok(entry(&module, state))
    }

    /// Sends the client events about the changes that its request makes to modules.
    fn listen(&self) -> modload::timeline::Listening {
        let (answers, id) = (self.answers.clone(), self.id);
        self.shared.host.listen(move |event| {
            answers.say(&json!({ "id": id, "event": event, "text": event.to_string() }));
        })
    }

    /// Reads the files that become one module.
    fn image(
        &self,
        files: &[String],
        descriptors: Vec<OwnedFd>,
        name: Option<String>,
    ) -> Result<Image<'static>, RequestRefusal> {
        let read = files.iter().zip(descriptors).map(|(file, descriptor)| read(file, descriptor));
        let read = read.collect::<Result<Vec<_>, _>>()?;
        let last = read.last().ok_or_else(|| RequestRefusal::BadRequest("a load needs a file".into()))?;
        let name = name.unwrap_or_else(|| last.stem.clone());
        Ok(self.shared.trust.unit(read.into_iter().map(ModuleFile::into_input).collect()).named(name))
    }

    fn load(&self, files: &[String], image: &Image<'_>) -> Result<ModuleName, RequestRefusal> {
        let _listening = self.listen();
        let loaded = self.shared.host.load(image);
        let file = || files.first().cloned().unwrap_or_default();
        // Drops the reference, which would keep other clients from unloading the module.
        let module = loaded.map_err(|source| RequestRefusal::Load { file: file(), source })?.name().to_owned();
        Ok(ModuleName { module })
    }

    fn unload(&self, name: &str, wait: Duration, forced: DespiteReferences) -> Result<(), RequestRefusal> {
        let _listening = self.listen();
        match (self.unload_within(name, wait), forced) {
            (Err(UnloadError::InUse { .. }), DespiteReferences::Yes) => Ok(self.shared.host.unload_by_force(name)?),
            (result, _) => Ok(result?),
        }
    }

    /// Waits until the module can be unloaded. Reports the current users to the client each time they change. Stops
    /// waiting if the server stops or the client is gone.
    fn unload_within(&self, name: &str, wait: Duration) -> Result<(), UnloadError> {
        const TURN: Duration = Duration::from_millis(250);
        let begun = Instant::now();
        let mut known = None;
        loop {
            let left = wait.saturating_sub(begun.elapsed());
            // The first attempt does not wait, so that the client is told at once why it has to wait.
            let turn = if known.is_none() { Duration::ZERO } else { left.min(TURN) };
            let refused = match self.shared.host.unload_within(name, turn) {
                Err(refused @ (UnloadError::InUse { .. } | UnloadError::Occupied { .. })) => refused,
                done => return done,
            };
            // A client that was interrupted does not expect a later unload.
            if left.is_zero() || self.shared.is_stopping() || self.answers.is_gone() {
                return Err(refused);
            }
            let users = users_text(&refused);
            if known.as_ref() != Some(&users) {
                self.say_waiting(&refused);
                known = Some(users);
            }
        }
    }

    fn say_waiting(&self, refused: &UnloadError) {
        let event = match refused {
            UnloadError::InUse { module, by, references } => {
                json!({ "event": "waiting", "module": module, "used_by": by, "references": references })
            }
            UnloadError::Occupied { module, threads } => {
                json!({ "event": "waiting", "module": module, "threads": occupants(threads) })
            }
            _ => return,
        };
        self.answers.say(&json!({ "id": self.id, "event": event, "text": format!("waiting: {refused}") }));
    }

    fn set_param(&self, name: &str, param: &str, value: Option<&str>) -> Result<ParamEntry, RequestRefusal> {
        let (module, _) = self.look(name)?;
        module.set_param(param, value)?;
        tracing::info!(module = name, param, "a parameter was set");
        let set = module.params().into_iter().find(|info| info.is_named(param));
        set.map(|info| self::param(&module, &info)).ok_or_else(|| RequestRefusal::NoModule(name.into()))
    }

    fn call(
        &self,
        symbol: &str,
        module: Option<&str>,
        result: ResultType,
        arguments: &[u64],
    ) -> Result<Called, RequestRefusal> {
        let host = &self.shared.host;
        let module: Module = match module {
            Some(name) => host.module(name).ok_or_else(|| RequestRefusal::NoModule(name.into()))?,
            None => {
                let has = |module: &Arc<ModuleInfo>| module.lasting_symbol(symbol).is_some();
                let mut modules = host.look().into_iter().map(|(module, _)| module).filter(has);
                let found = modules.find_map(|module| host.module(module.name()));
                found.ok_or_else(|| RequestRefusal::NoSymbol(symbol.into()))?
            }
        };
        let register = self.shared.trust.call(&module, symbol, arguments)?;
        Ok(Called { module: module.name().to_owned(), result: result.value(register) })
    }
}

/// Whether a module is unloaded despite references to it.
#[derive(Clone, Copy)]
enum DespiteReferences {
    No,
    Yes,
}

/// Reads a file from a client's descriptor. Only a regular file is accepted, so that the read cannot block for ever.
fn read(name: &str, descriptor: OwnedFd) -> Result<ModuleFile, RequestRefusal> {
    let refused = |why| RequestRefusal::NotAFile { file: name.to_owned(), why };
    let flags = fcntl_getfl(&descriptor).map_err(|errno| refused(NotAFile::Unknown(errno.into())))?;
    let file = File::from(descriptor);
    if !file.metadata().map_err(|error| refused(NotAFile::Unknown(error)))?.is_file() {
        return Err(refused(NotAFile::Special));
    }
    if flags.contains(OFlags::PATH) || flags & OFlags::ACCMODE == OFlags::WRONLY {
        return Err(refused(NotAFile::NotOpenForReading));
    }
    let read = ModuleFile::read_open(&file, Path::new(name), SIZE_LIMIT);
    read.map_err(|source| RequestRefusal::Read { file: name.to_owned(), source })
}

fn entry(module: &ModuleInfo, state: State) -> ModuleEntry {
    let [text, read_only, data, ro_after_init] = module.sizes();
    ModuleEntry {
        name: module.name().to_owned(),
        state,
        references: module.references(),
        used_by: module.users(),
        uses: module.uses(),
        sizes: Sizes { text, read_only, data, ro_after_init },
        taint: module.taint().to_owned(),
        license: module.license().map(str::to_owned),
        params: params(module),
    }
}

/// Returns the parameters that sysfs would show: those with any permission.
fn params(module: &ModuleInfo) -> Vec<ParamEntry> {
    module.params().iter().filter(|info| info.perm != 0).map(|info| param(module, info)).collect()
}

fn param(module: &ModuleInfo, info: &modload::module::ParamInfo) -> ParamEntry {
    /// All read permissions.
    const READ: u16 = 0o444;
    let value = (info.perm & READ != 0).then(|| module.param(&info.name)).flatten();
    ParamEntry { name: info.name.clone(), kind: info.kind.to_string(), perm: format!("{:04o}", info.perm), value }
}

/// Returns the text that identifies the users for whom an unload waits. It does not contain the places of threads,
/// which differ at each look.
fn users_text(refused: &UnloadError) -> String {
    match refused {
        UnloadError::Occupied { threads, .. } => {
            threads.iter().map(|occupant| format!("thread {} ", occupant.thread)).collect()
        }
        other => other.to_string(),
    }
}
