//! Loads, unloads and subscribers in several threads, and inside each other. A deadlock is a case that takes too long.

mod inside;
mod scene;
mod subscribers;
mod threads;
mod waiting;

use std::process::ExitCode;

use modload_tests::case;

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(waiting::the_second_load_of_a_name_waits_and_finds_it_there),
        case!(waiting::the_second_load_of_a_name_waits_and_is_told_that_it_failed),
        case!(waiting::who_waits_for_a_load_that_fails_unformed_is_woken),
        case!(waiting::a_name_that_is_going_is_busy),
        case!(waiting::a_user_waits_for_its_provider),
        case!(waiting::a_user_of_a_provider_that_fails_is_refused),
        case!(inside::init_that_loads_what_waits_for_it_is_a_cycle),
        case!(inside::init_that_loads_another_user_of_it_is_a_cycle),
        case!(inside::two_inits_that_load_each_other_are_a_cycle),
        case!(subscribers::a_subscriber_loads_unloads_joins_and_leaves),
        case!(inside::an_exit_loads_and_unloads),
        case!(inside::an_init_cannot_unload_its_own_module),
        case!(inside::a_provider_stays_while_its_user_is_coming),
        case!(subscribers::leave_waits_for_calls_in_other_threads),
        case!(subscribers::leave_from_within_its_own_call_returns),
        case!(subscribers::a_subscriber_that_owns_another_takes_it_along),
        case!(subscribers::panics_are_refusals_on_coming_and_logged_otherwise),
        case!(subscribers::who_joins_late_hears_nothing),
        case!(subscribers::who_has_left_hears_nothing_more),
        case!(threads::the_last_of_several_handles_unloads_while_the_host_is_there),
        case!(threads::eight_threads_load_and_unload).within_seconds(240),
        case!(threads::eight_threads_fight_for_one_name).within_seconds(120),
    ])
}
