// SPDX-License-Identifier: MIT OR Apache-2.0
/* Replaces another function, and on request all enabled patches. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/livepatch.h>
#include <modload/module.h>
#include "scene.h"

static int replace;
module_param(replace, int, 0444);

static int new_meminfo(struct seq_file *file, void *unused)
{
	(void)unused;
	seq_puts(file, KBUILD_MODNAME ": this has been live patched\n");
	return 0;
}

static struct klp_func funcs[] = { { .old_name = "meminfo_proc_show", .new_func = new_meminfo }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

static int klp_replace_init(void)
{
	patch.replace = replace;
	return klp_enable_patch(&patch);
}
module_init(klp_replace_init);

static void klp_replace_exit(void)
{
}
module_exit(klp_replace_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
MODULE_DESCRIPTION("a patch that can replace others");
