//! Loads, unloads and subscribers in several threads, and inside each other. A deadlock is a case that takes too long.

mod inside;
mod scene;
mod subscribers;
mod threads;
mod waiting;

use std::process::ExitCode;

use modload_tests::Case;

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("the_second_load_of_a_name_waits_and_finds_it_there", waiting::second_load_finds_it),
        Case::new("the_second_load_of_a_name_waits_and_is_told_that_it_failed", waiting::second_load_is_busy),
        Case::new("who_waits_for_a_load_that_fails_unformed_is_woken", waiting::woken_by_unformed),
        Case::new("a_name_that_is_going_is_busy", waiting::going_is_busy),
        Case::new("a_user_waits_for_its_provider", waiting::user_waits),
        Case::new("a_user_of_a_provider_that_fails_is_refused", waiting::user_of_failed_provider),
        Case::new("init_that_loads_what_waits_for_it_is_a_cycle", inside::cycle_in_one_thread),
        Case::new("init_that_loads_another_user_of_it_is_a_cycle", inside::cycle_through_a_symbol),
        Case::new("two_inits_that_load_each_other_are_a_cycle", inside::cycle_of_two_threads),
        Case::new("a_subscriber_loads_unloads_joins_and_leaves", subscribers::busy_subscriber),
        Case::new("an_exit_loads_and_unloads", inside::busy_exit),
        Case::new("an_init_cannot_unload_its_own_module", inside::init_unloads_itself),
        Case::new("a_provider_stays_while_its_user_is_coming", inside::provider_of_a_coming_user),
        Case::new("leave_waits_for_calls_in_other_threads", subscribers::leave_waits),
        Case::new("leave_from_within_its_own_call_returns", subscribers::leave_from_within),
        Case::new("a_subscriber_that_owns_another_takes_it_along", subscribers::owner_of_memberships),
        Case::new("panics_are_refusals_on_coming_and_logged_otherwise", subscribers::panics),
        Case::new("who_joins_late_hears_nothing", subscribers::late_joiners),
        Case::new("who_has_left_hears_nothing_more", subscribers::leavers),
        Case::new("the_last_of_several_handles_unloads_while_the_host_is_there", threads::last_handle),
        Case::new("eight_threads_load_and_unload", threads::eight_threads).within_seconds(240),
        Case::new("eight_threads_fight_for_one_name", threads::one_name).within_seconds(120),
    ])
}
