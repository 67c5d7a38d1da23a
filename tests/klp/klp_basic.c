// SPDX-License-Identifier: MIT OR Apache-2.0
/* Replaces a function of the kernel, or of the host. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/livepatch.h>
#include <modload/module.h>
#include "scene.h"

static int new_cmdline(struct seq_file *file, void *unused)
{
	(void)unused;
	seq_puts(file, KBUILD_MODNAME ": this has been live patched\n");
	return 0;
}

static struct klp_func funcs[] = { { .old_name = "cmdline_proc_show", .new_func = new_cmdline }, {} };
static struct klp_object objs[] = { { .funcs = funcs }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

static int klp_basic_init(void)
{
	return klp_enable_patch(&patch);
}
module_init(klp_basic_init);

static void klp_basic_exit(void)
{
}
module_exit(klp_basic_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
MODULE_DESCRIPTION("a patch of one function");
