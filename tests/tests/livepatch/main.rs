//! Live patching, end to end: the code that runs for each thread, before, during and after a transition.
//!
//! - `replacing`: when nothing is in transition.
//! - `transitions`: a thread blocks a transition, and how the transition ends.
//! - `checkpoints`: threads migrate only at checkpoints, and no thread gets a signal.
//! - `fire`: many transitions while threads call functions.
//! - `tracing`: with ftrace, and the order in which the two are notified of modules.
//! - `refusals`: functions and patches that are refused.
//! - `scene`: the modules of all these; `other`: a thread that runs given jobs.

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

use modload_tests::case;

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(replacing::a_function_is_replaced_and_put_back),
        case!(replacing::a_patch_waits_for_its_target),
        case!(replacing::patches_stack_up_and_are_replaced_at_once),
        case!(replacing::replacing_compares_functions_by_address),
        case!(replacing::replacing_compares_functions_of_a_target_that_comes_late),
        case!(transitions::a_thread_that_is_in_old_code_stays_there),
        case!(transitions::a_transition_is_turned_round),
        case!(transitions::a_transition_is_forced),
        case!(fire::nobody_sees_new_then_old).within_seconds(120),
        case!(fire::every_result_is_allowed_and_every_transition_ends).within_seconds(240),
        case!(fire::cycles_leave_nothing).within_seconds(240),
        case!(replacing::functions_of_the_hosts_own_are_patched),
        case!(tracing::a_patched_function_can_be_traced),
        case!(transitions::threads_are_born_and_end_in_mid_transition),
        case!(stacks::a_recursion_is_of_one_kind_at_every_depth),
        case!(stacks::who_is_cancelled_asleep_is_out_of_the_way),
        case!(stacks::the_end_of_a_thread_is_not_left_to_the_clock),
        case!(transitions::a_tail_call_leaves_its_function),
        case!(replacing::what_is_thrown_passes_through_a_patched_function).needing("g++"),
        case!(replacing::a_host_that_goes_takes_its_patches_along),
        case!(checkpoints::at_checkpoints_nobody_is_sent_a_signal),
        case!(checkpoints::a_thread_that_comes_to_no_checkpoint_stays_and_is_named),
        case!(checkpoints::a_checkpoint_within_a_patched_function_is_none),
        case!(checkpoints::a_transition_at_checkpoints_is_turned_round),
        case!(checkpoints::targets_come_and_go_in_a_transition_at_checkpoints),
        case!(checkpoints::traced_functions_change_at_checkpoints),
        case!(checkpoints::a_transition_at_checkpoints_is_forced),
        case!(checkpoints::a_child_goes_on_with_a_transition_at_checkpoints),
        case!(fire::between_two_checkpoints_nothing_changes).within_seconds(120),
        case!(fire::cycles_at_checkpoints_leave_nothing).within_seconds(120),
        case!(checkpoints::where_traps_cannot_be_used_checkpoints_alone_are_refused),
        case!(refusals::what_cannot_be_patched_is_refused_by_name),
        case!(refusals::a_function_named_twice_is_refused),
        case!(tracing::seed_003_ftrace_klp_klp_ftrace_in_both_load_orders),
    ])
}
