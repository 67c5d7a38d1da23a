// SPDX-License-Identifier: MIT OR Apache-2.0
/* A patch that uses symbols that its objects do not export: made by modhost klp-link. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/livepatch.h>
#include <modload/module.h>
#include <modload/printk.h>
#include "scene.h"

extern int secret KLP_SYMBOL(klp_secret, secret, 0);
int twice(int n) KLP_SYMBOL_NAMED(klp_secret, "twice.isra.0", 1);
int meminfo_proc_show(struct seq_file *file, void *unused) KLP_SYMBOL(vmlinux, meminfo_proc_show, 0);

/* An address in data waits, too. */
static __attribute__((__used__)) int *where = &secret;

static void new_tell(const char *when)
{
	secret += 100;
	pr_info("%s: the secret is %d, and twice that is %d\n", when, *READ_ONCE(where), twice(secret));
}

static int new_cmdline(struct seq_file *file, void *unused)
{
	seq_puts(file, KBUILD_MODNAME ": this has been live patched, and goes on\n");
	return meminfo_proc_show(file, unused);
}

static int new_meminfo(struct seq_file *file, void *unused)
{
	(void)unused;
	seq_puts(file, KBUILD_MODNAME ": this has been live patched\n");
	return 0;
}

static struct klp_func of_vmlinux[] = {
	{ .old_name = "cmdline_proc_show", .new_func = new_cmdline },
	{ .old_name = "meminfo_proc_show", .new_func = new_meminfo },
	{}
};
static struct klp_func of_secret[] = { { .old_name = "tell", .new_func = new_tell }, {} };
static struct klp_object objs[] = { { .funcs = of_vmlinux }, { .name = "klp_secret", .funcs = of_secret }, {} };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };

static int klp_linked_init(void)
{
	return klp_enable_patch(&patch);
}
module_init(klp_linked_init);

static void klp_linked_exit(void)
{
}
module_exit(klp_linked_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_INFO(livepatch, "Y");
MODULE_DESCRIPTION("a patch that uses what is not exported");
