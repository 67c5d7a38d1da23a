// SPDX-License-Identifier: MIT OR Apache-2.0
/* Changes a variable, and restores its value: a state in its first version, which has no knowledge of other patches. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/livepatch.h>
#include <modload/module.h>
#include <modload/printk.h>
#include "scene.h"
#include "told.h"

#define LEVEL 1

static struct klp_patch patch;

static int pre_patch(struct klp_object *object)
{
	struct klp_state *state = klp_get_state(&patch, LEVEL);

	tell(__func__, object);
	if (!state)
		return -EINVAL;
	state->data = kzalloc(sizeof(int), GFP_KERNEL);
	if (!state->data)
		return -ENOMEM;
	pr_info("room for the level is taken\n");
	return 0;
}

static void post_patch(struct klp_object *object)
{
	struct klp_state *state = klp_get_state(&patch, LEVEL);

	tell(__func__, object);
	pr_info("the level is changed\n");
	*(int *)state->data = console_loglevel;
	console_loglevel = CONSOLE_LOGLEVEL_MOTORMOUTH;
}

static void pre_unpatch(struct klp_object *object)
{
	struct klp_state *state = klp_get_state(&patch, LEVEL);

	tell(__func__, object);
	pr_info("the level is put back\n");
	console_loglevel = *(int *)state->data;
}

static void post_unpatch(struct klp_object *object)
{
	struct klp_state *state = klp_get_state(&patch, LEVEL);

	tell(__func__, object);
	pr_info("room for the level is given back\n");
	kfree(state->data);
}

static struct klp_func none[] = { {} };
static struct klp_object objs[] = { { .funcs = none, .callbacks = TOLD_CALLBACKS }, {} };
static struct klp_state states[] = { { .id = LEVEL, .version = 1 }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs, .states = states, .replace = true };

static int klp_state1_init(void)
{
	return klp_enable_patch(&patch);
}
module_init(klp_state1_init);

static void klp_state1_exit(void)
{
}
module_exit(klp_state1_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
MODULE_DESCRIPTION("a state");
