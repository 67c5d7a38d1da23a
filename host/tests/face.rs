//! What every embedder relies on: the types of the public face can be shared by threads and printed, and the errors are errors
//! (C-SEND-SYNC, C-DEBUG, C-GOOD-ERR of the Rust API Guidelines). The compiler checks most of it.

use std::error::Error;
use std::fmt::Debug;

use modload::error::{AnnexError, ArenaError, ObjectError, ParamError, PrepareError, RegistryError, SetParamError};
use modload::file::TrustedFileError;
use modload::{
    Backtrace, Export, Features, Host, HostBuilder, Image, LoadError, Membership, Module, ModuleInfo, Refusal,
    SymbolError, UnloadError, WeakHost,
};

const fn is_shared_and_printed<T: Send + Sync + Debug>() {}

const fn is_an_error<T: Error + Send + Sync + 'static>() {}

const _: () = {
    is_shared_and_printed::<Host>();
    is_shared_and_printed::<WeakHost>();
    is_shared_and_printed::<HostBuilder>();
    is_shared_and_printed::<Export>();
    is_shared_and_printed::<Image<'static>>();
    is_shared_and_printed::<Module>();
    is_shared_and_printed::<ModuleInfo>();
    is_shared_and_printed::<Membership>();
    is_shared_and_printed::<Features>();
    is_shared_and_printed::<Refusal>();
    is_shared_and_printed::<Backtrace>();
    is_shared_and_printed::<modload::timeline::Timeline>();
    is_shared_and_printed::<modload::timeline::Recording>();
    is_an_error::<modload::Error>();
    is_an_error::<LoadError>();
    is_an_error::<UnloadError>();
    is_an_error::<SymbolError>();
    is_an_error::<TrustedFileError>();
    is_an_error::<ArenaError>();
    is_an_error::<AnnexError>();
    is_an_error::<ObjectError>();
    is_an_error::<PrepareError>();
    is_an_error::<RegistryError>();
    is_an_error::<ParamError>();
    is_an_error::<SetParamError>();
};

#[cfg(feature = "trace")]
const _: () = {
    is_shared_and_printed::<modload::trace::Tracing>();
    is_an_error::<modload::trace::TraceError>();
};

#[cfg(feature = "livepatch")]
const _: () = {
    is_shared_and_printed::<modload::patch::PatchStatus>();
    is_an_error::<modload::patch::PatchError>();
};

#[cfg(feature = "keys")]
const _: () = {
    is_shared_and_printed::<modload::keys::StaticKey>();
    is_shared_and_printed::<modload::keys::StaticCall>();
};

/// Each level of an error is a phrase without a full stop, and `Debug`, which `main` prints, is the whole sentence.
#[test]
fn errors_print_as_sentences() {
    let host = Host::builder().build().unwrap();
    // SAFETY: the bytes have no code.
    let image = unsafe { Image::trusted(&b"no object"[..]) }.named("nothing");
    let error = host.load(&image).unwrap_err();
    let mut levels = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        levels.push(error.to_string());
        source = error.source();
    }
    assert!(levels.len() > 1, "{levels:?}");
    assert!(levels.iter().all(|level| !level.is_empty() && !level.ends_with('.')), "{levels:?}");
    assert!(levels.windows(2).all(|pair| !pair[0].contains(&*pair[1])), "{levels:?}");
    assert_eq!(format!("{error:?}"), levels.join(": "));
}
