//! Patches that refer to symbols that their objects do not export. The references to an object are written when the
//! object is loaded and taken back when the object is unloaded, with the records of special sections that depend on the
//! object.

mod faults;
mod keys;
mod large;
mod leaving;
mod meanwhile;
mod model;
mod mutants;
mod named;
mod refusals;
mod program;
mod scene;
mod target;

use std::process::ExitCode;

use modload_tests::case;

fn main() -> ExitCode {
    modload_tests::run(&[
        case!(target::what_is_not_exported_is_there_when_the_object_is).within_seconds(120),
        case!(target::a_patch_is_as_it_was_when_it_is_disabled),
        case!(target::a_variable_that_the_patch_has_changed_is_its_own),
        case!(target::a_patch_that_the_host_enables_holds_its_module),
        case!(target::a_host_that_goes_leaves_nothing_written),
        case!(keys::static_keys_and_calls_of_an_absent_module).within_seconds(120),
        case!(keys::patches_come_and_go_while_keys_are_switched).within_seconds(120),
        case!(model::all_comes_and_goes_in_any_order).within_seconds(120),
        case!(model::all_comes_and_goes_at_checkpoints).within_seconds(120),
        case!(large::thousands_of_places_that_wait).within_seconds(120),
        case!(keys::targets_and_patches_come_and_go_at_once).within_seconds(120),
        case!(named::alternatives_that_call_an_absent_module),
        case!(named::kpatch_580_a_relocation_onto_a_rewritten_site),
        case!(named::kpatch_944_jump_labels_before_their_relocations),
        case!(named::kpatch_699_the_targets_init_fails),
        case!(leaving::who_is_in_a_replacement_keeps_its_target),
        case!(leaving::what_could_not_be_taken_back_is_waited_for),
        case!(mutants::mutants_of_a_patch_never_do_more_than_fail).within_seconds(120),
        case!(meanwhile::targets_come_and_go_in_mid_transition).within_seconds(60),
        case!(refusals::a_target_that_a_patch_does_not_fit_is_refused),
        case!(refusals::a_target_that_is_refused_midway_leaves_nothing),
        case!(faults::each_stage_of_a_targets_load_fails_in_turn),
        case!(refusals::files_that_ask_for_what_cannot_wait_are_refused),
        case!(refusals::patches_that_wait_in_the_wrong_place_are_refused),
        case!(program::what_the_program_does_not_export).within_seconds(60),
        case!(refusals::a_symbol_that_the_host_does_not_have_is_named),
        case!(leaving::who_is_in_what_refers_to_a_target_keeps_its_patch_enabled),
        case!(leaving::who_is_in_what_was_disabled_by_force_keeps_its_target),
    ])
}
