// SPDX-License-Identifier: MIT OR Apache-2.0
/* Callbacks that log their own name, their object, and the state of the object's module. */
#ifndef TOLD_H
#define TOLD_H

static const char *state_name(const struct module *module)
{
	switch (READ_ONCE(module->state)) {
	case MODULE_STATE_LIVE:
		return "LIVE";
	case MODULE_STATE_COMING:
		return "COMING";
	case MODULE_STATE_GOING:
		return "GOING";
	default:
		return "UNFORMED";
	}
}

static void tell(const char *callback, const struct klp_object *object)
{
	if (object->mod)
		pr_info("%s of %s, which is %s\n", callback, object->mod->name, state_name(object->mod));
	else
		pr_info("%s of vmlinux\n", callback);
}

#define TOLD_CALLBACKS                                                                                               \
	{ .pre_patch = pre_patch, .post_patch = post_patch, .pre_unpatch = pre_unpatch, .post_unpatch = post_unpatch }

#endif
