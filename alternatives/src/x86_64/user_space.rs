//! The features that user space must have or must not have, independent of the processor.

/// The rule for a feature.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Must {
    /// The feature is set.
    BeThere,
    /// The feature is not set.
    NotBeThere,
    /// The feature is as the processor says if the operating system saves the needed registers at a context switch.
    /// Otherwise it is not set.
    BeSaved(fn() -> bool),
}

/// A rule for some features, with its reason.
#[derive(Debug)]
pub(crate) struct FeatureRule {
    pub(crate) features: &'static [&'static str],
    pub(crate) must: Must,
    pub(crate) because: &'static str,
}

const fn row(features: &'static [&'static str], must: Must, because: &'static str) -> FeatureRule {
    FeatureRule { features, must, because }
}

fn avx() -> bool {
    std::is_x86_feature_detected!("avx")
}

fn avx512() -> bool {
    std::is_x86_feature_detected!("avx512f")
}

use Must::{BeSaved, BeThere, NotBeThere};

/// The rules. Each feature occurs once.
#[rustfmt::skip]
pub(crate) const ROWS: &[FeatureRule] = &[
    row(&["ALWAYS"], BeThere,
        "Linux sets it on every processor: without it static_cpu_has() asks boot_cpu_data, and fillings of return stacks take place"),
    row(&["NOPL"], BeThere,
        "Linux sets it on every x86-64 processor: NOPs have several bytes"),
    row(&["XENPV"], BeThere,
        "without it calls through pv_ops become cli, sti, mov %cr3 and their like; with it the operations table decides"),
    row(&["SMAP"], NotBeThere,
        "stac and clac fault outside of the kernel"),
    row(&["SMEP"], NotBeThere,
        "code that depends on it writes %cr4"),
    row(&["PCID", "INVPCID"], NotBeThere,
        "invpcid faults outside of the kernel, and so do writes of %cr3"),
    row(&["XSAVES"], NotBeThere,
        "xsaves and xrstors fault outside of the kernel"),
    row(&["MWAIT"], NotBeThere,
        "monitor and mwait fault outside of the kernel"),
    row(&["VMX", "SVM", "SKINIT", "SMX"], NotBeThere,
        "the instructions of hypervisors and of measured launches fault outside of the kernel"),
    row(&["SGX", "PCONFIG", "ENQCMD"], NotBeThere,
        "encls, pconfig and enqcmds fault outside of the kernel, and enqcmd without an address space id that the kernel gives"),
    row(&["FSGSBASE"], NotBeThere,
        "wrfsbase and wrgsbase fault where the system has not allowed them, and in a process write the bases of its own threads"),
    row(&["PKU"], NotBeThere,
        "the processor may have protection keys that the system does not use: OSPKE says that rdpkru and wrpkru do not fault"),
    row(&["AMX_BF16", "AMX_TILE", "AMX_INT8"], NotBeThere,
        "tile registers fault in a process that has not asked the system for them"),
    row(&["MSR", "SPEC_CTRL", "INTEL_STIBP", "SPEC_CTRL_SSBD", "FLUSH_L1D", "ARCH_CAPABILITIES", "CORE_CAPABILITIES", "SRBDS_CTRL",
          "AMD_IBPB", "AMD_IBRS", "AMD_STIBP", "AMD_SSBD", "VIRT_SSBD", "AMD_IBPB_RET", "SBPB", "IBPB_BRTYPE", "AUTOIBRS"], NotBeThere,
        "code that depends on them uses rdmsr and wrmsr, which fault outside of the kernel"),
    row(&["AVX", "FMA", "F16C", "AVX2", "XOP", "FMA4", "VAES", "VPCLMULQDQ", "AVX_VNNI", "GFNI"], BeSaved(avx),
        "the system must save registers of 256 bits"),
    row(&["AVX512F", "AVX512DQ", "AVX512IFMA", "AVX512PF", "AVX512ER", "AVX512CD", "AVX512BW", "AVX512VL", "AVX512_BF16", "AVX512VBMI",
          "AVX512_VBMI2", "AVX512_VNNI", "AVX512_BITALG", "AVX512_VPOPCNTDQ", "AVX512_4VNNIW", "AVX512_4FMAPS",
          "AVX512_VP2INTERSECT", "AVX512_FP16"], BeSaved(avx512),
        "the system must save registers of 512 bits"),
];
