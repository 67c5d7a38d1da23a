//! Live patching, end to end: which code runs for whom, before, during and after a transition.
//!
//! - `replacing`: when nothing is in transition.
//! - `transitions`: while a thread is in the way, and what becomes of it.
//! - `checkpoints`: where threads go over at checkpoints alone, and nobody is sent a signal.
//! - `fire`: while everybody calls, over and over.
//! - `tracing`: beside ftrace, and in which order the two are told of modules.
//! - `refusals`: what cannot be patched.
//! - `scene`: the modules of all these; `other`: a thread that does what it is told.

mod scene;
mod stacks;
mod other;
mod replacing;
mod transitions;
mod checkpoints;
mod fire;
mod tracing;
mod refusals;

use std::process::ExitCode;

use modload_tests::Case;

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("a_function_is_replaced_and_put_back", replacing::replaced),
        Case::new("a_patch_waits_for_its_target", replacing::waits),
        Case::new("patches_stack_up_and_are_replaced_at_once", replacing::stacked),
        Case::new("replacing_compares_functions_by_address", replacing::named_otherwise),
        Case::new("replacing_compares_functions_of_a_target_that_comes_late", replacing::named_otherwise_in_transition),
        Case::new("a_thread_that_is_in_old_code_stays_there", transitions::blocked),
        Case::new("a_transition_is_turned_round", transitions::reversed),
        Case::new("a_transition_is_forced", transitions::forced),
        Case::new("nobody_sees_new_then_old", fire::witness).within_seconds(120),
        Case::new("every_result_is_allowed_and_every_transition_ends", fire::under_load).within_seconds(240),
        Case::new("cycles_leave_nothing", fire::cycles).within_seconds(240),
        Case::new("functions_of_the_hosts_own_are_patched", replacing::hosts_own),
        Case::new("a_patched_function_can_be_traced", tracing::traced),
        Case::new("threads_are_born_and_end_in_mid_transition", transitions::born),
        Case::new("a_recursion_is_of_one_kind_at_every_depth", stacks::recursion),
        Case::new("who_is_cancelled_asleep_is_out_of_the_way", stacks::cancelled),
        Case::new("the_end_of_a_thread_is_not_left_to_the_clock", stacks::ended),
        Case::new("a_tail_call_leaves_its_function", transitions::tail_call),
        Case::new("what_is_thrown_passes_through_a_patched_function", replacing::thrown).needing("g++"),
        Case::new("a_host_that_goes_takes_its_patches_along", replacing::dropped),
        Case::new("at_checkpoints_nobody_is_sent_a_signal", checkpoints::no_signal),
        Case::new("a_thread_that_comes_to_no_checkpoint_stays_and_is_named", checkpoints::stays),
        Case::new("a_checkpoint_within_a_patched_function_is_none", checkpoints::within),
        Case::new("a_transition_at_checkpoints_is_turned_round", checkpoints::reversed),
        Case::new("targets_come_and_go_in_a_transition_at_checkpoints", checkpoints::joined),
        Case::new("traced_functions_change_at_checkpoints", checkpoints::traced),
        Case::new("a_transition_at_checkpoints_is_forced", checkpoints::forced),
        Case::new("a_child_goes_on_with_a_transition_at_checkpoints", checkpoints::forked),
        Case::new("between_two_checkpoints_nothing_changes", fire::requests).within_seconds(120),
        Case::new("cycles_at_checkpoints_leave_nothing", fire::cycles_at_checkpoints).within_seconds(120),
        Case::new("where_traps_cannot_be_used_checkpoints_alone_are_refused", checkpoints::refused),
        Case::new("what_cannot_be_patched_is_refused_by_name", refusals::refused),
        Case::new("a_function_named_twice_is_refused", refusals::twice),
        Case::new("seed_003_ftrace_klp_klp_ftrace_in_both_load_orders", tracing::seed_003),
    ])
}
