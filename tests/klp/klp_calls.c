// SPDX-License-Identifier: MIT OR Apache-2.0
/* Callbacks of three objects, one of them with a function to replace; those before patching refuse on request. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/livepatch.h>
#include <modload/module.h>
#include <modload/printk.h>
#include "scene.h"
#include "told.h"

static int refuse;
module_param(refuse, int, 0644);

static int pre_patch(struct klp_object *object)
{
	tell(__func__, object);
	return refuse;
}

static void post_patch(struct klp_object *object)
{
	tell(__func__, object);
}

static void pre_unpatch(struct klp_object *object)
{
	tell(__func__, object);
}

static void post_unpatch(struct klp_object *object)
{
	tell(__func__, object);
}

static void new_work(struct work_struct *work)
{
	(void)work;
	pr_info("%s\n", __func__);
}

static struct klp_func none[] = { {} };
static struct klp_func busy[] = { { .old_name = "busy_work", .new_func = new_work }, {} };
static struct klp_object objs[] = {
	{ .funcs = none, .callbacks = TOLD_CALLBACKS },
	{ .name = "klp_target", .funcs = none, .callbacks = TOLD_CALLBACKS },
	{ .name = "klp_busy", .funcs = busy, .callbacks = TOLD_CALLBACKS },
	{}
};
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

static int klp_calls_init(void)
{
	return klp_enable_patch(&patch);
}
module_init(klp_calls_init);

static void klp_calls_exit(void)
{
}
module_exit(klp_calls_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
MODULE_DESCRIPTION("a patch with callbacks");
