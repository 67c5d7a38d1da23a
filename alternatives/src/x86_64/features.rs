//! The table of processor features: numbers and names as in Linux 6.1's `cpufeatures.h`, with Debian's backports of
//! 2026.

/// One word of 32 features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    /// Bit numbers and names, sorted by bit number. Names of bugs begin with `BUG_`.
    pub(crate) bits: &'static [(u8, &'static str)],
}

/// The number of words: 22 words of capabilities, then the words of bugs.
pub const WORDS: usize = 24;

/// All features. The number of a feature is 32 times the index of its word plus its bit number.
#[rustfmt::skip]
pub(crate) const FEATURES: &[Word; WORDS] = &[
    // 0: CPUID 1, EDX
    Word { bits: &[
        (0, "FPU"), (1, "VME"), (2, "DE"), (3, "PSE"), (4, "TSC"), (5, "MSR"), (6, "PAE"), (7, "MCE"), (8, "CX8"),
        (9, "APIC"), (11, "SEP"), (12, "MTRR"), (13, "PGE"), (14, "MCA"), (15, "CMOV"), (16, "PAT"), (17, "PSE36"),
        (18, "PN"), (19, "CLFLUSH"), (21, "DS"), (22, "ACPI"), (23, "MMX"), (24, "FXSR"), (25, "XMM"),
        (26, "XMM2"), (27, "SELFSNOOP"), (28, "HT"), (29, "ACC"), (30, "IA64"), (31, "PBE"),
    ] },
    // 1: CPUID 0x8000_0001, EDX
    Word { bits: &[
        (11, "SYSCALL"), (19, "MP"), (20, "NX"), (22, "MMXEXT"), (25, "FXSR_OPT"), (26, "GBPAGES"), (27, "RDTSCP"),
        (29, "LM"), (30, "3DNOWEXT"), (31, "3DNOW"),
    ] },
    // 2: Transmeta
    Word { bits: &[
        (0, "RECOVERY"), (1, "LONGRUN"), (3, "LRTI"),
    ] },
    // 3: Linux's own
    Word { bits: &[
        (0, "CXMMX"), (1, "K6_MTRR"), (2, "CYRIX_ARR"), (3, "CENTAUR_MCR"), (4, "K8"), (6, "P3"), (7, "P4"),
        (8, "CONSTANT_TSC"), (9, "UP"), (10, "ART"), (11, "ARCH_PERFMON"), (12, "PEBS"), (13, "BTS"),
        (14, "SYSCALL32"), (15, "SYSENTER32"), (16, "REP_GOOD"), (17, "AMD_LBR_V2"), (18, "LFENCE_RDTSC"),
        (19, "ACC_POWER"), (20, "NOPL"), (21, "ALWAYS"), (22, "XTOPOLOGY"), (23, "TSC_RELIABLE"),
        (24, "NONSTOP_TSC"), (25, "CPUID"), (26, "EXTD_APICID"), (27, "AMD_DCM"), (28, "APERFMPERF"), (29, "RAPL"),
        (30, "NONSTOP_TSC_S3"), (31, "TSC_KNOWN_FREQ"),
    ] },
    // 4: CPUID 1, ECX
    Word { bits: &[
        (0, "XMM3"), (1, "PCLMULQDQ"), (2, "DTES64"), (3, "MWAIT"), (4, "DSCPL"), (5, "VMX"), (6, "SMX"),
        (7, "EST"), (8, "TM2"), (9, "SSSE3"), (10, "CID"), (11, "SDBG"), (12, "FMA"), (13, "CX16"), (14, "XTPR"),
        (15, "PDCM"), (17, "PCID"), (18, "DCA"), (19, "XMM4_1"), (20, "XMM4_2"), (21, "X2APIC"), (22, "MOVBE"),
        (23, "POPCNT"), (24, "TSC_DEADLINE_TIMER"), (25, "AES"), (26, "XSAVE"), (27, "OSXSAVE"), (28, "AVX"),
        (29, "F16C"), (30, "RDRAND"), (31, "HYPERVISOR"),
    ] },
    // 5: VIA and Centaur
    Word { bits: &[
        (2, "XSTORE"), (3, "XSTORE_EN"), (6, "XCRYPT"), (7, "XCRYPT_EN"), (8, "ACE2"), (9, "ACE2_EN"), (10, "PHE"),
        (11, "PHE_EN"), (12, "PMM"), (13, "PMM_EN"),
    ] },
    // 6: CPUID 0x8000_0001, ECX
    Word { bits: &[
        (0, "LAHF_LM"), (1, "CMP_LEGACY"), (2, "SVM"), (3, "EXTAPIC"), (4, "CR8_LEGACY"), (5, "ABM"), (6, "SSE4A"),
        (7, "MISALIGNSSE"), (8, "3DNOWPREFETCH"), (9, "OSVW"), (10, "IBS"), (11, "XOP"), (12, "SKINIT"),
        (13, "WDT"), (15, "LWP"), (16, "FMA4"), (17, "TCE"), (19, "NODEID_MSR"), (21, "TBM"), (22, "TOPOEXT"),
        (23, "PERFCTR_CORE"), (24, "PERFCTR_NB"), (26, "BPEXT"), (27, "PTSC"), (28, "PERFCTR_LLC"), (29, "MWAITX"),
    ] },
    // 7: Linux's own
    Word { bits: &[
        (0, "RING3MWAIT"), (1, "CPUID_FAULT"), (2, "CPB"), (3, "EPB"), (4, "CAT_L3"), (5, "CAT_L2"), (6, "CDP_L3"),
        (7, "INVPCID_SINGLE"), (8, "HW_PSTATE"), (9, "PROC_FEEDBACK"), (10, "XCOMPACTED"), (11, "PTI"),
        (12, "KERNEL_IBRS"), (13, "RSB_VMEXIT"), (14, "INTEL_PPIN"), (15, "CDP_L2"), (16, "MSR_SPEC_CTRL"),
        (17, "SSBD"), (18, "MBA"), (19, "RSB_CTXSW"), (20, "PERFMON_V2"), (21, "USE_IBPB"), (22, "USE_IBRS_FW"),
        (23, "SPEC_STORE_BYPASS_DISABLE"), (24, "LS_CFG_SSBD"), (25, "IBRS"), (26, "IBPB"), (27, "STIBP"),
        (28, "ZEN"), (29, "L1TF_PTEINV"), (30, "IBRS_ENHANCED"), (31, "MSR_IA32_FEAT_CTL"),
    ] },
    // 8: virtualisation, Linux's own
    Word { bits: &[
        (0, "TPR_SHADOW"), (1, "VNMI"), (2, "FLEXPRIORITY"), (3, "EPT"), (4, "VPID"), (5, "COHERENCY_SFW_NO"),
        (15, "VMMCALL"), (16, "XENPV"), (17, "EPT_AD"), (18, "VMCALL"), (19, "VMW_VMMCALL"), (20, "PVUNLOCK"),
        (21, "VCPUPREEMPT"), (22, "TDX_GUEST"),
    ] },
    // 9: CPUID 7.0, EBX
    Word { bits: &[
        (0, "FSGSBASE"), (1, "TSC_ADJUST"), (2, "SGX"), (3, "BMI1"), (4, "HLE"), (5, "AVX2"),
        (6, "FDP_EXCPTN_ONLY"), (7, "SMEP"), (8, "BMI2"), (9, "ERMS"), (10, "INVPCID"), (11, "RTM"), (12, "CQM"),
        (13, "ZERO_FCS_FDS"), (14, "MPX"), (15, "RDT_A"), (16, "AVX512F"), (17, "AVX512DQ"), (18, "RDSEED"),
        (19, "ADX"), (20, "SMAP"), (21, "AVX512IFMA"), (23, "CLFLUSHOPT"), (24, "CLWB"), (25, "INTEL_PT"),
        (26, "AVX512PF"), (27, "AVX512ER"), (28, "AVX512CD"), (29, "SHA_NI"), (30, "AVX512BW"), (31, "AVX512VL"),
    ] },
    // 10: CPUID 0xd.1, EAX
    Word { bits: &[
        (0, "XSAVEOPT"), (1, "XSAVEC"), (2, "XGETBV1"), (3, "XSAVES"), (4, "XFD"),
    ] },
    // 11: Linux's own
    Word { bits: &[
        (0, "CQM_LLC"), (1, "CQM_OCCUP_LLC"), (2, "CQM_MBM_TOTAL"), (3, "CQM_MBM_LOCAL"), (4, "FENCE_SWAPGS_USER"),
        (5, "FENCE_SWAPGS_KERNEL"), (6, "SPLIT_LOCK_DETECT"), (7, "PER_THREAD_MBA"), (8, "SGX1"), (9, "SGX2"),
        (10, "ENTRY_IBPB"), (11, "RRSBA_CTRL"), (12, "RETPOLINE"), (13, "RETPOLINE_LFENCE"), (14, "RETHUNK"),
        (15, "UNRET"), (16, "USE_IBPB_FW"), (17, "RSB_VMEXIT_LITE"), (18, "CLEAR_CPU_BUF"), (20, "MSR_TSX_CTRL"),
        (24, "SRSO"), (25, "SRSO_ALIAS"), (26, "IBPB_ON_VMEXIT"), (27, "APIC_MSRS_FENCE"), (28, "ZEN2"),
        (29, "ZEN3"), (30, "ZEN4"), (31, "ZEN1"),
    ] },
    // 12: CPUID 7.1, EAX
    Word { bits: &[
        (4, "AVX_VNNI"), (5, "AVX512_BF16"),
    ] },
    // 13: CPUID 0x8000_0008, EBX
    Word { bits: &[
        (0, "CLZERO"), (1, "IRPERF"), (2, "XSAVEERPTR"), (4, "RDPRU"), (9, "WBNOINVD"), (12, "AMD_IBPB"),
        (14, "AMD_IBRS"), (15, "AMD_STIBP"), (17, "AMD_STIBP_ALWAYS_ON"), (23, "AMD_PPIN"), (24, "AMD_SSBD"),
        (25, "VIRT_SSBD"), (26, "AMD_SSB_NO"), (27, "CPPC"), (29, "BTC_NO"), (30, "AMD_IBPB_RET"), (31, "BRS"),
    ] },
    // 14: CPUID 6, EAX
    Word { bits: &[
        (0, "DTHERM"), (1, "IDA"), (2, "ARAT"), (4, "PLN"), (6, "PTS"), (7, "HWP"), (8, "HWP_NOTIFY"),
        (9, "HWP_ACT_WINDOW"), (10, "HWP_EPP"), (11, "HWP_PKG_REQ"), (19, "HFI"),
    ] },
    // 15: CPUID 0x8000_000a, EDX
    Word { bits: &[
        (0, "NPT"), (1, "LBRV"), (2, "SVML"), (3, "NRIPS"), (4, "TSCRATEMSR"), (5, "VMCBCLEAN"),
        (6, "FLUSHBYASID"), (7, "DECODEASSISTS"), (10, "PAUSEFILTER"), (12, "PFTHRESHOLD"), (13, "AVIC"),
        (15, "V_VMSAVE_VMLOAD"), (16, "VGIF"), (18, "X2AVIC"), (20, "V_SPEC_CTRL"), (28, "SVME_ADDR_CHK"),
    ] },
    // 16: CPUID 7.0, ECX
    Word { bits: &[
        (1, "AVX512VBMI"), (2, "UMIP"), (3, "PKU"), (4, "OSPKE"), (5, "WAITPKG"), (6, "AVX512_VBMI2"), (8, "GFNI"),
        (9, "VAES"), (10, "VPCLMULQDQ"), (11, "AVX512_VNNI"), (12, "AVX512_BITALG"), (13, "TME"),
        (14, "AVX512_VPOPCNTDQ"), (16, "LA57"), (22, "RDPID"), (24, "BUS_LOCK_DETECT"), (25, "CLDEMOTE"),
        (27, "MOVDIRI"), (28, "MOVDIR64B"), (29, "ENQCMD"), (30, "SGX_LC"),
    ] },
    // 17: CPUID 0x8000_0007, EBX
    Word { bits: &[
        (0, "OVERFLOW_RECOV"), (1, "SUCCOR"), (3, "SMCA"),
    ] },
    // 18: CPUID 7.0, EDX
    Word { bits: &[
        (2, "AVX512_4VNNIW"), (3, "AVX512_4FMAPS"), (4, "FSRM"), (8, "AVX512_VP2INTERSECT"), (9, "SRBDS_CTRL"),
        (10, "MD_CLEAR"), (11, "RTM_ALWAYS_ABORT"), (13, "TSX_FORCE_ABORT"), (14, "SERIALIZE"), (15, "HYBRID_CPU"),
        (16, "TSXLDTRK"), (18, "PCONFIG"), (19, "ARCH_LBR"), (20, "IBT"), (22, "AMX_BF16"), (23, "AVX512_FP16"),
        (24, "AMX_TILE"), (25, "AMX_INT8"), (26, "SPEC_CTRL"), (27, "INTEL_STIBP"), (28, "FLUSH_L1D"),
        (29, "ARCH_CAPABILITIES"), (30, "CORE_CAPABILITIES"), (31, "SPEC_CTRL_SSBD"),
    ] },
    // 19: CPUID 0x8000_001f, EAX
    Word { bits: &[
        (0, "SME"), (1, "SEV"), (2, "VM_PAGE_FLUSH"), (3, "SEV_ES"), (9, "V_TSC_AUX"), (10, "SME_COHERENT"),
    ] },
    // 20: CPUID 0x8000_0021, EAX
    Word { bits: &[
        (5, "VERW_CLEAR"), (8, "AUTOIBRS"), (27, "SBPB"), (28, "IBPB_BRTYPE"), (29, "SRSO_NO"),
    ] },
    // 21: Linux's own
    Word { bits: &[
        (0, "AMD_LBR_PMC_FREEZE"), (1, "CLEAR_BHB_LOOP"), (2, "BHI_CTRL"), (3, "CLEAR_BHB_HW"),
        (4, "CLEAR_BHB_LOOP_ON_VMEXIT"), (5, "INDIRECT_THUNK_ITS"), (11, "TSA_SQ_NO"), (12, "TSA_L1_NO"),
        (13, "CLEAR_CPU_BUF_VM"), (14, "IBPB_EXIT_TO_USER"),
    ] },
    // 22: bugs
    Word { bits: &[
        (0, "BUG_F00F"), (1, "BUG_FDIV"), (2, "BUG_COMA"), (3, "BUG_AMD_TLB_MMATCH"), (4, "BUG_AMD_APIC_C1E"),
        (5, "BUG_11AP"), (6, "BUG_FXSAVE_LEAK"), (7, "BUG_CLFLUSH_MONITOR"), (8, "BUG_SYSRET_SS_ATTRS"),
        (9, "BUG_ESPFIX"), (10, "BUG_NULL_SEG"), (11, "BUG_SWAPGS_FENCE"), (12, "BUG_MONITOR"),
        (13, "BUG_AMD_E400"), (14, "BUG_CPU_MELTDOWN"), (15, "BUG_SPECTRE_V1"), (16, "BUG_SPECTRE_V2"),
        (17, "BUG_SPEC_STORE_BYPASS"), (18, "BUG_L1TF"), (19, "BUG_MDS"), (20, "BUG_MSBDS_ONLY"),
        (21, "BUG_SWAPGS"), (22, "BUG_TAA"), (23, "BUG_ITLB_MULTIHIT"), (24, "BUG_SRBDS"),
        (25, "BUG_MMIO_STALE_DATA"), (26, "BUG_MMIO_UNKNOWN"), (27, "BUG_RETBLEED"), (28, "BUG_EIBRS_PBRSB"),
        (29, "BUG_SMT_RSB"), (30, "BUG_GDS"),
    ] },
    // 23: more bugs
    Word { bits: &[
        (0, "BUG_SRSO"), (1, "BUG_DIV0"), (2, "BUG_RFDS"), (3, "BUG_BHI"), (4, "BUG_IBPB_NO_RET"), (5, "BUG_ITS"),
        (6, "BUG_ITS_NATIVE_ONLY"), (9, "BUG_TSA"), (10, "BUG_VMSCAPE"),
    ] },
];
