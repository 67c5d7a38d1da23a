//! Patches that refer to what their objects do not export: what waits for an object is written when it comes and taken back when
//! it goes, with the records of special sections that depend on it.

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

use modload_tests::Case;

fn main() -> ExitCode {
    modload_tests::run(&[
        Case::new("what_is_not_exported_is_there_when_the_object_is", target::comes_and_goes).within_seconds(120),
        Case::new("a_patch_is_as_it_was_when_it_is_disabled", target::disabled),
        Case::new("a_variable_that_the_patch_has_changed_is_its_own", target::changed_variable),
        Case::new("a_patch_that_the_host_enables_holds_its_module", target::enabled_by_the_host),
        Case::new("a_host_that_goes_leaves_nothing_written", target::host_dropped),
        Case::new("static_keys_and_calls_of_an_absent_module", keys::comes_and_goes).within_seconds(120),
        Case::new("patches_come_and_go_while_keys_are_switched", keys::under_fire).within_seconds(120),
        Case::new("all_comes_and_goes_in_any_order", model::anywhere).within_seconds(120),
        Case::new("all_comes_and_goes_at_checkpoints", model::at_checkpoints).within_seconds(120),
        Case::new("thousands_of_places_that_wait", large::patches).within_seconds(120),
        Case::new("targets_and_patches_come_and_go_at_once", keys::at_once).within_seconds(120),
        Case::new("alternatives_that_call_an_absent_module", named::alternatives),
        Case::new("kpatch_580_a_relocation_onto_a_rewritten_site", named::kpatch_580),
        Case::new("kpatch_944_jump_labels_before_their_relocations", named::kpatch_944),
        Case::new("kpatch_699_the_targets_init_fails", named::kpatch_699),
        Case::new("who_is_in_a_replacement_keeps_its_target", leaving::inside),
        Case::new("what_could_not_be_taken_back_is_waited_for", leaving::stale),
        Case::new("mutants_of_a_patch_never_do_more_than_fail", mutants::never_do_more_than_fail).within_seconds(120),
        Case::new("targets_come_and_go_in_mid_transition", meanwhile::comes_and_goes).within_seconds(60),
        Case::new("a_target_that_a_patch_does_not_fit_is_refused", refusals::targets),
        Case::new("a_target_that_is_refused_midway_leaves_nothing", refusals::midway),
        Case::new("each_stage_of_a_targets_load_fails_in_turn", faults::each_stage),
        Case::new("files_that_ask_for_what_cannot_wait_are_refused", refusals::files),
        Case::new("patches_that_wait_in_the_wrong_place_are_refused", refusals::patches),
        Case::new("what_the_program_does_not_export", program::symbols).within_seconds(60),
        Case::new("a_symbol_that_the_host_does_not_have_is_named", refusals::vmlinux),
        Case::new("who_is_in_what_refers_to_a_target_keeps_its_patch_enabled", leaving::disabled_meanwhile),
        Case::new("who_is_in_what_was_disabled_by_force_keeps_its_target", leaving::disabled_by_force),
    ])
}
