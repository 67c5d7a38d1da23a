// SPDX-License-Identifier: MIT OR Apache-2.0
/* Only callbacks, in a patch that on request replaces all enabled patches. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/livepatch.h>
#include <modload/module.h>
#include <modload/printk.h>
#include "scene.h"
#include "told.h"

static int replace;
module_param(replace, int, 0444);

static int pre_patch(struct klp_object *object)
{
	tell(__func__, object);
	return 0;
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

static struct klp_func none[] = { {} };
static struct klp_object objs[] = { { .funcs = none, .callbacks = TOLD_CALLBACKS }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

static int klp_calls2_init(void)
{
	patch.replace = replace;
	return klp_enable_patch(&patch);
}
module_init(klp_calls2_init);

static void klp_calls2_exit(void)
{
}
module_exit(klp_calls2_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
MODULE_DESCRIPTION("a second patch with callbacks");
